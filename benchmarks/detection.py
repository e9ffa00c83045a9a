"""Measures what a detector's boxes tell of their images and of who trained it, by defense.

python benchmarks/detection.py
"""

import time
from collections.abc import Sequence

import torch
from results import write_section
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import shieldnet as sn

SIDE, CELL, DIGIT = 32, 8, 8
MEMBERS, NONMEMBERS, OWN = 40, 200, 300
STEPS, SHADOWS = 500, 8
Target = dict[str, Tensor]
BOXES = (sn.ClipRange(0.0, float(SIDE)), sn.RoundTo(4.0))
COLUMNS = (
    "accuracy",
    "inversion.map",
    "inversion.search.map",
    "r2.inversion.map",
    "membership.maps.auc",
)


def scenes(rows: int, digits: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, list[Target]]:
    """Lays one to three digits on a noisy ground, each anywhere in a corner of its own.

    Shapes: digits (n, 8, 8) -> (rows, 1, 32, 32), and boxes and labels from 1 for each.
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.rand(rows, 1, SIDE, SIDE, generator=generator)
    targets = []
    for image in images:
        count = int(torch.randint(1, 4, (), generator=generator))
        corners = torch.randperm(4, generator=generator)[:count]
        chosen = torch.randint(len(digits), (count,), generator=generator)
        shifts = torch.randint(0, SIDE // 2 - DIGIT + 1, (count, 2), generator=generator)
        places = torch.stack([corners // 2, corners % 2], 1) * (SIDE // 2) + shifts
        for (top, left), digit in zip(places.tolist(), digits[chosen], strict=True):
            image[0, top : top + DIGIT, left : left + DIGIT] += digit
        boxes = torch.cat([places.flip(1), places.flip(1) + DIGIT], 1).float()
        targets.append({"boxes": boxes, "labels": 1 + labels[chosen]})
    return images, targets


class Detector(nn.Module):
    """Says of every cell whether the middle of a digit is there, where exactly, and which digit."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for read, written, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(read, written, 3, stride, 1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(64, 1 + 2 + 10, 1))

    def cells(self, images: Tensor) -> Tensor:
        """Shapes: (n, 1, 32, 32) -> (n, 16, 13)."""
        return self.net(images).flatten(2).movedim(1, 2)

    def forward(self, images: Sequence[Tensor] | Tensor) -> list[dict[str, Tensor]]:
        """Answers as torchvision's detectors do: a dict of boxes, labels and scores an image."""
        return [self._boxes(cells) for cells in self.cells(torch.stack(list(images)))]

    def _boxes(self, cells: Tensor) -> dict[str, Tensor]:
        scores, order = cells[:, 0].sigmoid().sort(descending=True, stable=True)
        order = order[scores > 0.2]
        across = SIDE // CELL
        corners = torch.stack([order % across, order // across], 1) * CELL
        middle = corners + CELL * cells[order, 1:3].sigmoid()
        boxes = torch.cat([middle - DIGIT / 2, middle + DIGIT / 2], 1).clamp(0, SIDE)
        labels = 1 + cells[order, 3:].argmax(1)
        return {"boxes": boxes, "labels": labels, "scores": scores[: len(order)]}


def trained(data: tuple[Tensor, list[Target]], seed: int) -> nn.Module:
    """Trains a detector on scenes."""
    images, targets = data
    truth = [_cells_of(target) for target in targets]
    is_there, middle, digit = (torch.stack(parts) for parts in zip(*truth, strict=True))
    torch.manual_seed(seed)
    model = Detector()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (min(32, len(images)),))
        cells, there = model.cells(images[rows]), is_there[rows]
        own = there > 0
        loss = binary_cross_entropy_with_logits(cells[..., 0], there)
        loss = loss + (cells[own][:, 1:3].sigmoid() - middle[rows][own]).square().sum(1).mean()
        loss = loss + cross_entropy(cells[own][:, 3:], digit[rows][own])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


def _cells_of(target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Says of every cell whether a middle is in it, where, and of which digit."""
    across = SIDE // CELL
    is_there, middle = torch.zeros(across**2), torch.zeros(across**2, 2)
    digit = torch.zeros(across**2, dtype=torch.int64)
    centers = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2 / CELL
    cells = centers.floor().clamp_max(across - 1)
    places = (cells[:, 1] * across + cells[:, 0]).long()
    is_there[places], middle[places], digit[places] = 1.0, centers - cells, target["labels"] - 1
    return is_there, middle, digit


def shields_of(model: nn.Module) -> dict[str, sn.Shield]:
    """Returns shields that release all three fields, finer and coarser."""
    chains: dict[str, tuple[tuple[sn.Defense, ...], tuple[sn.Defense, ...]]] = {
        "boxes on a grid of 4": ((), BOXES),
        "and Confidence(4)": ((sn.Confidence(4),), BOXES),
        "and on a grid of 8": (
            (sn.Confidence(4),),
            (sn.ClipRange(0.0, float(SIDE)), sn.RoundTo(8.0)),
        ),
    }
    kinds = {"scores": "binary_probabilities", "boxes": "values"}
    return {
        name: sn.Shield(model, *chain, outputs=kinds, also={"boxes": boxes, "labels": ()})
        for name, (chain, boxes) in chains.items()
    }


def main() -> None:
    """Runs the audit and writes its table."""
    started = time.process_time()
    bunch = load_digits()
    digits, labels = torch.tensor(bunch.images / 16).float(), torch.tensor(bunch.target)
    members, nonmembers, own = (
        scenes(rows, digits, labels, seed) for seed, rows in enumerate((MEMBERS, NONMEMBERS, OWN))
    )
    model = trained(members, 0)
    attacks = (sn.attacks.MapInversion(), sn.attacks.MapProbing(), sn.attacks.MapMembership())
    report = sn.audit(
        shields_of(model),
        members=members,
        nonmembers=nonmembers,
        auxiliary=own[0],
        tier=sn.Tier("detections", attacks),
        train=trained,
        shadows=SHADOWS,
        engine="inline",
    )
    rows = [
        [
            subject.name,
            *(str(subject[column]) for column in COLUMNS),
            subject["membership.maps.auc"].source,
        ]
        for subject in report.subjects
    ]
    head = ["", "cells right", "leakage", "by search", "R2", "membership AUC", "by"]
    text = (
        f"{MEMBERS} members, {NONMEMBERS} nonmembers, {OWN} images of the adversary's without "
        f"boxes, {SHADOWS} shadows; {time.process_time() - started:.0f} CPU s. Leakage is beyond "
        "the winner of each painted cell, R2 over the mean image; the cost of every shield is "
        "infinite, as nothing bounds the number of boxes.\n\n"
        f"{tabulate(rows, head, tablefmt='github', disable_numparse=True)}"
    )
    write_section("detection", "python benchmarks/detection.py", text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
