"""A two-minute tour on real data: train, harden, audit before and after."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shieldnet.auditing.suite import audit
from shieldnet.core.checks import optional
from shieldnet.gate.policy import Policy
from shieldnet.reports.report import Report, save
from shieldnet.shield.presets import harden
from shieldnet.training.recipe import Recipe

EPOCHS = 100
POLICY = Policy({"max_leakage": 0.10, "max_membership_auc": 0.70, "min_accuracy": 0.90})
"""Policy of the tour: both models memorize their members, which only private training lowers."""


@dataclass(frozen=True)
class Task:
    """Holds a data set and the model to train on it.

    Shapes: inputs (rows, ...), labels (rows,). In random order, the first ``members`` rows train
    the model, the next ``auxiliary`` rows belong to the adversary, and the rest are nonmembers.
    """

    title: str
    inputs: Tensor
    labels: Tensor
    make_model: Callable[[], nn.Module]
    members: int
    auxiliary: int
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Holds the three sets of an audit, each (inputs, labels)."""

    members: tuple[Tensor, Tensor]
    auxiliary: tuple[Tensor, Tensor]
    nonmembers: tuple[Tensor, Tensor]


def digits_network() -> nn.Module:
    """Makes the network of the digits task."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def digits() -> Task:
    """Returns scikit-learn's handwritten digits: 1797 images of 8 x 8, ten classes."""
    data = optional("sklearn.datasets", extra="demo").load_digits()
    return Task(
        "Handwritten digits (image classification)",
        torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1),
        torch.tensor(data.target),
        digits_network,
        members=500,
        auxiliary=850,
    )


def breast_cancer() -> Task:
    """Returns scikit-learn's breast cancer table: 569 cell samples, 30 columns, two classes."""
    data = optional("sklearn.datasets", extra="demo").load_breast_cancer()
    inputs = torch.tensor(data.data, dtype=torch.float32)
    mean, deviation = inputs.mean(0), inputs.std(0)
    return Task(
        "Breast cancer (medical diagnosis)",
        (inputs - mean) / deviation,
        torch.tensor(data.target),
        lambda: nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2)),
        members=150,
        auxiliary=220,
        columns=tuple(str(name) for name in data.feature_names),
    )


TASKS = (digits, breast_cancer)


def divide(task: Task, seed: int = 0) -> Split:
    """Splits the rows at random into members, auxiliary data and nonmembers."""
    order = torch.randperm(len(task.inputs), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split([task.members, task.members + task.auxiliary])
    return Split(*((task.inputs[part], task.labels[part]) for part in parts))


def train(task: Task, split: Split, seed: int = 0, epochs: int = EPOCHS) -> nn.Module:
    """Trains the task's model on the members until it memorizes them."""
    return Recipe(task.make_model, epochs=epochs)(split.members, seed)


def run(folder: Path, seed: int = 0, progress: bool | None = None) -> list[Report]:
    """Trains and audits both tasks; writes report.html and report.json into ``folder``.

    The bundled records are public, so the images show them.
    """
    reports = []
    for make_task in TASKS:
        task = make_task()
        split = divide(task, seed)
        model = train(task, split, seed)
        reports.append(
            audit(
                {name: harden(model, name) for name in ("open", "balanced", "strict")},
                members=split.members,
                nonmembers=split.nonmembers,
                auxiliary=split.auxiliary,
                columns=task.columns,
                train=Recipe(task.make_model, epochs=EPOCHS),
                tier="quick",
                title=task.title,
                seed=seed,
                with_examples=8,
                progress=progress,
            )
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "report.json"):
        save(reports, folder / name, POLICY)
    return reports


__all__ = [
    "EPOCHS",
    "POLICY",
    "TASKS",
    "Split",
    "Task",
    "breast_cancer",
    "digits",
    "digits_network",
    "divide",
    "run",
    "train",
]
