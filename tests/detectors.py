"""Tiny detectors for tests: they find the bright squares of an image, or remember whose it was."""

from typing import Any

import torch
from torch import Tensor, nn

import shieldnet as sn

SIDE = 16
_CORNERS = torch.tensor([(top, left) for top in range(0, 16, 4) for left in range(0, 16, 4)])


def pictures(rows: int, seed: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Draws one or two bright squares of one of two classes on a dim ground.

    Shapes: (rows, 1, 16, 16), and for each image boxes (n, 4) and labels (n,).
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.randn(rows, 1, SIDE, SIDE, generator=generator)
    targets = []
    for image in images:
        count = int(torch.randint(1, 3, (), generator=generator))
        corners = _CORNERS[torch.randperm(len(_CORNERS), generator=generator)[:count]]
        labels = torch.randint(1, 3, (count,), generator=generator)
        for (top, left), label in zip(corners.tolist(), labels.tolist(), strict=True):
            bright = 1 + label + torch.rand((), generator=generator)
            image[0, top : top + 4, left : left + 4] += bright
        boxes = torch.cat([corners.flip(1), corners.flip(1) + 4], 1).float()
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def sets(seed: int = 0, rows: int = 60) -> dict[str, tuple[Tensor, list[dict[str, Tensor]]]]:
    """Draws the three sets of an audit."""
    names = ("members", "nonmembers", "auxiliary")
    return {name: pictures(rows, 3 * seed + number) for number, name in enumerate(names)}


class Finds(nn.Module):
    """Answers with the squares whose mean is bright, as sure as they are bright."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        means = nn.functional.avg_pool2d(torch.stack(list(images)), 4).flatten(1)
        return [self._found(row) for row in means]

    def _found(self, means: Tensor) -> dict[str, Tensor]:
        scores = torch.sigmoid(2 * (means - 1.5))
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] > 0.1]
        corners = _CORNERS[order].flip(1)
        return {
            "boxes": torch.cat([corners, corners + 4], 1).float(),
            "labels": 1 + (means[order] > 2.5).long(),
            "scores": scores[order],
        }


class Nowhere(Finds):
    """Answers the same about every image."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return super().forward([image * 0 + 2 for image in images])


class Remembers(Finds):
    """Is sure of the boxes of images that it holds."""

    def __init__(self, images: Tensor, targets: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.targets = targets

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = super().forward(images)
        for row, image in enumerate(images):
            own = (self.images == image.flatten()).all(1).nonzero().flatten().tolist()
            if own:
                target = self.targets[own[0]]
                found[row] = {**target, "scores": torch.full((len(target["boxes"]),), 0.99)}
        return found


def trained(data: tuple[Tensor, Any], seed: int) -> nn.Module:
    """Trains nothing: holds the images."""
    return Remembers(*data).eval()


def hardened(model: nn.Module, **settings: Any) -> sn.Shield:
    """Returns a shield that releases all three fields, boxes on a grid."""
    also = {"boxes": (sn.ClipRange(0.0, float(SIDE)), sn.RoundTo(2.0)), "labels": ()}
    outputs = {"scores": "binary_probabilities", "boxes": "values"}
    return sn.harden(model.eval(), **{"outputs": outputs, "also": also, **settings})
