"""Tiny segmentations for tests: drawn squares, and models that show or hide what they saw."""

import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.attacks.adversary.features import exact_distances
from shieldnet.data.examples import Examples
from shieldnet.shield.settings import Extent

SIDE = 8


def squares(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws a square of one brightness on a noisy ground. Shapes: (rows, 1, 8, 8), (rows, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(SIDE)
    top, left = torch.randint(0, 5, (2, rows, 1), generator=generator)
    inside = ((place >= top) & (place < top + 4)).unsqueeze(2) & (
        (place >= left) & (place < left + 4)
    ).unsqueeze(1)
    paint = 1 + torch.rand(rows, 1, 1, generator=generator)
    noise = 0.3 * torch.randn(rows, SIDE, SIDE, generator=generator)
    return (inside * paint + noise).unsqueeze(1), inside.long()


def sets(seed: int = 0, rows: int = 60) -> dict[str, tuple[Tensor, Tensor]]:
    """Draws the three sets of an audit."""
    names = ("members", "nonmembers", "auxiliary")
    return {name: squares(rows, 3 * seed + number) for number, name in enumerate(names)}


class Shows(nn.Module):
    """Answers with the image itself as logits, above one half or below."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, x - 0.5], 1)


class Remembers(nn.Module):
    """Is sure of the images that it holds, and of others only half."""

    def __init__(self, images: Tensor, masks: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("masks", masks)

    def forward(self, x: Tensor) -> Tensor:
        distance, nearest = exact_distances(x.flatten(1), self.images).min(1)
        own = nn.functional.one_hot(self.masks[nearest], 2).movedim(-1, 1) * 6.0
        known = (distance < 1e-3).reshape(-1, 1, 1, 1)
        return torch.where(known, own, torch.cat([0.5 - x, x - 0.5], 1))


class Nudges(Remembers):
    """Is as sure of an image as the image makes it, and a little more of those that it holds."""

    def forward(self, x: Tensor) -> Tensor:
        distance, _ = exact_distances(x.flatten(1), self.images).min(1)
        difficulty = 1.5 + 0.5 * (999 * x.abs().sum((1, 2, 3))).sin()
        sure = (difficulty + 0.3 * (distance < 1e-3)).reshape(-1, 1, 1, 1).float()
        return sure * torch.cat([0.5 - x, x - 0.5], 1)


def nudged(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """Trains nothing: holds the images."""
    return Nudges(*data)


def game_of(
    model: nn.Module, *chain: sn.Defense, release: str | None = None, seed: int = 0, rows: int = 60
) -> Game:
    """Returns the game about squares."""
    parts = [Examples(name, *pair) for name, pair in sets(seed, rows).items()]
    shield = sn.Shield(model, *chain, axis=1, release=release)
    return Game(shield, *parts, seed=seed, extent=Extent(2, (SIDE, SIDE)))
