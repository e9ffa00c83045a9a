"""Decoders that turn a map of numbers back into the image that it is about, place by place."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad, unfold

from shieldnet.attacks.adversary.decoders import start_layers

MAX_CHANNELS = 48
"""Of a map with more classes, those that vary the most are read."""
_MAX_PIXELS = 60_000  # to learn from
_MAX_PATCH_NUMBERS = 300  # read of a map for one pixel
_PIXELS_AT_ONCE = 2**17
_ROWS = 16  # whose windows are the same


@dataclass(frozen=True)
class MapDecoder(ABC):
    """Learns images from maps of about their size; a pixel is guessed from what is near it."""

    @abstractmethod
    def predict(self, learned: Tensor, known: Tensor, unseen: Tensor) -> Tensor:
        """Fits on (learned, known) and returns the images that it expects for ``unseen``.

        Shapes: learned (n, channels, height, width), standardized; known (n, colors, height,
        width), less their mean; unseen (m, channels, height, width) -> (m, colors, height, width).
        """


@dataclass(frozen=True)
class Patches(MapDecoder):
    """Linear least squares from the patch of the map around a pixel, the same for all pixels.

    side: of a patch, an odd number of pixels; less where the map has many channels.
    """

    side: int = 5
    penalty: float = 1e-4

    def predict(self, learned: Tensor, known: Tensor, unseen: Tensor) -> Tensor:
        kernel, bias = self.fitted(learned, known)
        parts = unseen.split(max(1, _PIXELS_AT_ONCE // unseen[0, 0].numel()))
        return torch.cat(
            [conv2d(part, kernel, bias, padding=kernel.shape[-1] // 2) for part in parts]
        )

    def fitted(self, learned: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weights. Shapes: -> (colors, channels, side, side), (colors,)."""
        side = self.side
        while side > 1 and side * side * learned.shape[1] > _MAX_PATCH_NUMBERS:
            side -= 2
        patches, pixels = _some_patches(learned, known, side)
        patches = torch.cat([patches, torch.ones(len(patches), 1)], 1)
        gram = (patches.T @ patches).double()
        gram.diagonal().add_(self.penalty * len(patches))
        weights = torch.linalg.solve(gram, (patches.T @ pixels).double()).float().T
        return weights[:, :-1].reshape(-1, learned.shape[1], side, side), weights[:, -1]


def _some_patches(learned: Tensor, known: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Draws a window of every image. Shapes: -> (pixels, numbers), (pixels, colors)."""
    generator = torch.Generator().manual_seed(0)
    reach = side // 2
    size = known.shape[2:]
    area = max(1, _MAX_PIXELS // len(known))
    tall, wide = (min(length, math.ceil(area**0.5)) for length in size)
    patches, pixels = [], []
    for maps, images in zip(learned.split(_ROWS), known.split(_ROWS), strict=True):
        top, left = _corner(size, (tall, wide), generator)
        around = pad(maps, (reach,) * 4)[:, :, top : top + tall + 2 * reach]
        patches.append(unfold(around[..., left : left + wide + 2 * reach], side))
        pixels.append(images[:, :, top : top + tall, left : left + wide].flatten(2))
    return _pixel_rows(patches), _pixel_rows(pixels)


def _pixel_rows(parts: list[Tensor]) -> Tensor:
    """Shapes: each (rows, numbers, pixels) -> (all pixels, numbers)."""
    return torch.cat([part.movedim(1, 2).flatten(0, 1) for part in parts])


def _corner(
    size: torch.Size, window: tuple[int, int], generator: torch.Generator
) -> tuple[int, int]:
    """Draws where a window begins."""
    top, left = (
        int(torch.randint(length - part + 1, (), generator=generator))
        for length, part in zip(size, window, strict=True)
    )
    return top, left


@dataclass(frozen=True)
class MapNetwork(MapDecoder):
    """What ``Patches`` guesses, and a small convolutional network that learns what it misses.

    width: channels. steps: of AdamW, each on one window of a few maps.
    """

    width: int = 24
    steps: int = 200
    seed: int = 0

    def predict(self, learned: Tensor, known: Tensor, unseen: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        net = _Residual(*Patches().fitted(learned, known), self.width, generator)
        places = _places(known.shape[2:])
        tall, wide = (min(32, size) for size in known.shape[2:])
        batch = min(64, max(4, 2**13 // (tall * wide)))
        optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            rows = torch.randint(len(learned), (batch,), generator=generator)
            top, left = _corner(known.shape[2:], (tall, wide), generator)
            window = (slice(None), slice(None), slice(top, top + tall), slice(left, left + wide))
            optimizer.zero_grad()
            guess = net(learned[rows][window], places[window])
            (guess - known[rows][window]).square().mean().backward()
            optimizer.step()
            schedule.step()
        parts = unseen.split(max(1, _PIXELS_AT_ONCE // unseen[0, 0].numel()))
        with torch.no_grad():
            return torch.cat([net(part, places) for part in parts])


class _Residual(nn.Module):
    """A convolution by given weights, and a network that begins at zero."""

    kernel: Tensor
    bias: Tensor

    def __init__(
        self, kernel: Tensor, bias: Tensor, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        colors, channels = kernel.shape[:2]
        layers: list[nn.Module] = [
            nn.utils.skip_init(nn.Conv2d, channels + 2, width, 3, padding=1),
            nn.utils.skip_init(nn.Conv2d, width, width, 3, padding=2, dilation=2),
            nn.utils.skip_init(nn.Conv2d, width, colors, 3, padding=1),
        ]
        start_layers(layers, generator)
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]  # a convolution has weights
        self.net = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.register_buffer("kernel", kernel)
        self.register_buffer("bias", bias)

    def forward(self, maps: Tensor, places: Tensor) -> Tensor:
        """Shapes: (n, channels, h, w), (1, 2, h, w) -> (n, colors, h, w)."""
        known_places = torch.cat([maps, places.expand(len(maps), -1, -1, -1)], 1)
        guess: Tensor = self.net(known_places)
        return guess + conv2d(maps, self.kernel, self.bias, padding=self.kernel.shape[-1] // 2)


def _places(size: torch.Size) -> Tensor:
    """Tells every pixel where it is, from -1 to 1. Shapes: -> (1, 2, height, width)."""
    height, width = size
    down = torch.linspace(-1, 1, height).reshape(-1, 1).expand(height, width)
    along = torch.linspace(-1, 1, width).expand(height, width)
    return torch.stack([down, along]).unsqueeze(0)


def standardized(learned: Tensor, unseen: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Takes off the first maps' mean, scales channels, and brings both to the size of the images.

    Shapes: (n, channels, *map), (m, channels, *map) -> (n, kept, *size), (m, kept, *size), float32.
    """
    spread = learned.std((0, 2, 3))
    kept = spread.argsort(descending=True, stable=True)[:MAX_CHANNELS].sort().values
    center = learned[:, kept].mean(0)
    unit = spread[kept].where(spread[kept] > 1e-6, 1.0).reshape(1, -1, 1, 1)
    both = []
    for maps in (learned, unseen):
        scaled = ((maps[:, kept] - center) / unit).clamp(-10, 10).float()
        if scaled.shape[2:] != size:
            scaled = interpolate(scaled, size=size, mode="bilinear", align_corners=False)
        both.append(scaled)
    return both[0], both[1]
