"""Decoders that an adversary trains to turn answers back into inputs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.features import exact_distances

MAX_KERNEL_ROWS = 4000
"""Kernel ridge and k-NN learn from at most this many auxiliary rows: their cost grows fast."""
_MAX_MEDIAN_ROWS = 1000  # whose distances have their median taken


@dataclass(frozen=True)
class Decoder(ABC):
    """Learns targets from features, once for each of its settings."""

    settings: ClassVar[tuple[tuple[float, ...], ...]]
    joint: ClassVar[bool] = False
    """Whether what it learns of one target depends on the others."""

    @abstractmethod
    def predict(
        self, features: Tensor, targets: Tensor, unseen: Tensor, setting: tuple[float, ...]
    ) -> Tensor:
        """Fits on (features, targets) and returns what it expects for ``unseen``.

        Shapes: features (n, f) standardized, targets (n, d), unseen (m, f) -> (m, d); float32.
        """

    def predict_each(self, features: Tensor, targets: Tensor, unseen: Tensor) -> Iterator[Tensor]:
        """Does the same for every setting in turn, sharing what they have in common."""
        for setting in self.settings:
            yield self.predict(features, targets, unseen, setting)


@dataclass(frozen=True)
class Ridge(Decoder):
    """Linear least squares with an L2 penalty; setting: (penalty per row,)."""

    settings = tuple((penalty,) for penalty in (1e-5, 1e-3, 1e-2, 1e-1, 1.0))

    def predict(
        self, features: Tensor, targets: Tensor, unseen: Tensor, setting: tuple[float, ...]
    ) -> Tensor:
        return next(_ridges(features, targets, unseen, (setting,)))

    def predict_each(self, features: Tensor, targets: Tensor, unseen: Tensor) -> Iterator[Tensor]:
        return _ridges(features, targets, unseen, self.settings)


def _ridges(
    features: Tensor, targets: Tensor, unseen: Tensor, settings: Sequence[tuple[float, ...]]
) -> Iterator[Tensor]:
    """Solves for weights of the features, or of the rows where these are fewer."""
    known, center = features.double(), targets.double().mean(0)
    sought, across = targets.double() - center, unseen.double()
    if len(known) < known.shape[1]:
        gram, across = known @ known.T, across @ known.T
    else:
        gram, sought = known.T @ known, known.T @ sought
    for (penalty,) in settings:
        system = gram.clone()
        system.diagonal().add_(penalty * len(known))
        yield (across @ torch.linalg.solve(system, sought) + center).to(targets.dtype)


def _some(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Draws at most ``MAX_KERNEL_ROWS`` rows: the first of sorted data are of one kind only."""
    if len(features) <= MAX_KERNEL_ROWS:
        return features, targets
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    rows = order[:MAX_KERNEL_ROWS]
    return features[rows], targets[rows]


@dataclass(frozen=True)
class KernelRidge(Decoder):
    """Ridge in the space of a Gaussian kernel; setting: (width in median distances, penalty)."""

    settings = tuple(
        (width, penalty) for width in (0.5, 1.0, 2.0, 4.0) for penalty in (1e-3, 1e-2, 1e-1)
    )

    def predict(
        self, features: Tensor, targets: Tensor, unseen: Tensor, setting: tuple[float, ...]
    ) -> Tensor:
        return next(_kernel_ridges(*_some(features, targets), unseen, (setting,)))

    def predict_each(self, features: Tensor, targets: Tensor, unseen: Tensor) -> Iterator[Tensor]:
        return _kernel_ridges(*_some(features, targets), unseen, self.settings)


def _kernel_ridges(
    features: Tensor, targets: Tensor, unseen: Tensor, settings: Sequence[tuple[float, ...]]
) -> Iterator[Tensor]:
    distances, across = torch.cdist(features, features), torch.cdist(unseen, features)
    is_exact = False
    few = distances[:_MAX_MEDIAN_ROWS]
    median = few[few > 0].median() if few.any() else 1.0
    center = targets.mean(0)
    for width, penalty in settings:
        gram, across_gram = (_gaussian(lengths, width * median) for lengths in (distances, across))
        gram.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed and not is_exact:  # rows so alike that float32 cannot tell: without its rounding
            is_exact = True
            distances, across = (
                exact_distances(rows, features).float() for rows in (features, unseen)
            )
            gram, across_gram = (
                _gaussian(lengths, width * median) for lengths in (distances, across)
            )
            gram.diagonal().add_(penalty)
        if failed:
            factor = torch.linalg.cholesky(gram.double()).float()
        if len(unseen) < targets.shape[1]:
            yield torch.cholesky_solve(across_gram.T, factor).T @ (targets - center) + center
        else:
            yield across_gram @ torch.cholesky_solve(targets - center, factor) + center


def _gaussian(distances: Tensor, width: float | Tensor) -> Tensor:
    return torch.exp(-((distances / width) ** 2) / 2)


@dataclass(frozen=True)
class NearestNeighbors(Decoder):
    """The mean over the k rows with the nearest answers, and all as near; setting: (k,)."""

    settings = tuple((float(k),) for k in (1, 3, 8, 20, 50))

    def predict(
        self, features: Tensor, targets: Tensor, unseen: Tensor, setting: tuple[float, ...]
    ) -> Tensor:
        features, targets = _some(features, targets)
        k = min(int(setting[0]), len(features))
        distances = torch.cdist(unseen, features)
        near = (distances <= distances.kthvalue(k, 1, keepdim=True).values).float()
        return near @ targets / near.sum(1, keepdim=True)


@dataclass(frozen=True)
class Network(Decoder):
    """A small network with one hidden layer; setting: (hidden units, steps)."""

    settings = ((128.0, 200.0),)
    joint = True
    seed: int = 0

    def predict(
        self, features: Tensor, targets: Tensor, unseen: Tensor, setting: tuple[float, ...]
    ) -> Tensor:
        hidden, steps = int(setting[0]), int(setting[1])
        generator = torch.Generator().manual_seed(self.seed)
        sizes = (features.shape[1], hidden), (hidden, targets.shape[1])
        layers = [nn.utils.skip_init(nn.Linear, *size) for size in sizes]
        start_layers(layers, generator)
        net = nn.Sequential(layers[0], nn.GELU(), layers[1])
        return _learned(net, features, targets, unseen, steps, 256, generator)


@dataclass(frozen=True)
class Convolutional(Decoder):
    """Draws an image: a small map, twice as large with every layer; setting: (channels, steps).

    shape: (channels, height, width) of an image.
    """

    settings = ((32.0, 300.0),)
    joint = True
    shape: tuple[int, ...] = (1, 28, 28)
    seed: int = 0

    def predict(
        self, features: Tensor, targets: Tensor, unseen: Tensor, setting: tuple[float, ...]
    ) -> Tensor:
        width, steps = int(setting[0]), int(setting[1])
        generator = torch.Generator().manual_seed(self.seed)
        colors, height, breadth = self.shape
        rows, columns = -(-height // 4), -(-breadth // 4)
        layers: list[nn.Module] = [
            nn.utils.skip_init(nn.Linear, features.shape[1], 2 * width * rows * columns),
            nn.utils.skip_init(nn.ConvTranspose2d, 2 * width, width, 4, stride=2, padding=1),
            nn.utils.skip_init(nn.ConvTranspose2d, width, colors, 4, stride=2, padding=1),
        ]
        start_layers(layers, generator)
        net = nn.Sequential(
            layers[0],
            nn.GELU(),
            nn.Unflatten(1, (2 * width, rows, columns)),
            layers[1],
            nn.GELU(),
            layers[2],
            _Cut(height, breadth),
            nn.Flatten(),
        )
        return _learned(net, features, targets, unseen, steps, 64, generator)


class _Cut(nn.Module):
    """Cuts a map to the size of an image."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, maps: Tensor) -> Tensor:
        return maps[..., : self.height, : self.width]


def start_layers(layers: Sequence[nn.Module], generator: torch.Generator) -> None:
    """Starts layers from a generator of our own: their usual start would move the global seed."""
    with torch.no_grad():
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)  # type: ignore[arg-type]  # they have weights
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # and biases


def _learned(
    net: nn.Module,
    features: Tensor,
    targets: Tensor,
    unseen: Tensor,
    steps: int,
    batch: int,
    generator: torch.Generator,
) -> Tensor:
    """Trains a network to give targets, and returns what it gives for ``unseen``."""
    center = targets.mean(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        picked = torch.randint(len(features), (batch,), generator=generator)
        optimizer.zero_grad()
        loss = (net(features[picked]) - (targets[picked] - center)).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        guess: Tensor = net(unseen) + center
    return guess
