"""Membership attacks against SACRO-ML: same targets, splits, shadows and epochs, in one run.

SACRO-ML runs in an environment of its own (see sacro_worker.py). Scores of several targets are
pooled, so that rates at low false-positive rates rest on more records.

    python benchmarks/membership.py --sacro sacro-venv/bin/python
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from results import write_section
from torch import Tensor, nn
from tqdm import tqdm

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.attacks.membership.cascade import train_cascade
from shieldnet.attacks.membership.scores import all_scores
from shieldnet.attacks.membership.shadows import ShadowPlan
from shieldnet.core.statistics import Interval, auc, tpr_at_fpr
from shieldnet.data.examples import Examples
from shieldnet.demo import digits

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HIDDEN, SHADOWS, BATCH, LR, MOMENTUM = 128, 16, 32, 0.05, 0.9
STAGES = ((4,), (SHADOWS,), (4, 4), (8, 4, 4))
OURS = (
    "LiRA",
    "LiRA offline",
    "RMIA",
    "RMIA offline",
    "LiRA borrowing",
    "LiRA proxy",
    "ensemble",
    "cascade",
)
SHOWN = ("LiRA, 16 shadows", "LiRA borrowing, 4 shadows", "cascade, 8 + 4 + 4 shadows")
DEFAULT = "offline, a variance per record"
ADVISED = "online-carlini, one variance"

READING = """
One target is an MLP with 128 hidden units, trained by SGD (rate .05, momentum .9, batch 32); both
sides train their shadows the same way on random halves of the same records, on one thread:
SACRO-ML 16, shieldnet 4 and 16, and in stages 4 + 4 and 8 + 4 + 4 (the cascade). Scores are pooled
over targets and judged by one code; intervals are 95 % (DeLong; Clopper-Pearson that knows of the
estimated threshold). CPU seconds are for one target, from the data to the scores: SACRO-ML's for
LiRA, shieldnet's for all of its attacks together. SACRO-ML's six settings reread the same shadows;
"its default" is what a user gets, and "its best" is chosen with hindsight.

The goal is 1.25 times the rate of a peer's best setting at a fifth of its CPU time. "LiRA proxy"
never looks at a shadow that was trained on the record. Two more peers were tried: what PyPI has of
LeakPro (0.0.1) is an empty package, and Privacy Meter's (1.0.1, of 2023) is older than its RMIA;
online RMIA is among shieldnet's lines, in the form of InfoRMIA.
"""


@dataclass(frozen=True)
class Task:
    """One data set. rows: members and as many nonmembers. targets: models that are attacked."""

    name: str
    load: Callable[[], tuple[Tensor, Tensor]]
    rows: int
    epochs: int
    targets: int


def digits_rows() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's digits as rows of 64 pixels."""
    task = digits()
    return task.inputs.flatten(1), task.labels


def location_rows() -> tuple[Tensor, Tensor]:
    """Returns Location30: 446 yes or no, 30 classes."""
    with np.load(DATA / "location.npz") as file:
        labels = torch.from_numpy(file["y"].astype(np.int64))
        return torch.from_numpy(file["X"].astype(np.float32)), labels - labels.min()


def mnist_rows() -> tuple[Tensor, Tensor]:
    """Returns MNIST's training images as rows of 784 pixels."""
    with np.load(DATA / "mnist.npz") as file:
        inputs = torch.from_numpy(file["Xtr"]).flatten(1).float() / 255
        return inputs, torch.from_numpy(file["ytr"].astype(np.int64))


TASKS = (
    Task("digits", digits_rows, 500, 50, 8),
    Task("Location30", location_rows, 1500, 50, 2),
    Task("MNIST", mnist_rows, 2000, 30, 2),
)


def network(features: int, classes: int) -> nn.Module:
    """Makes the target's network."""
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


Scores = dict[str, tuple[Tensor, Tensor]]


def ours(
    recipe: sn.Recipe,
    model: nn.Module,
    sets: dict[str, Examples],
    seed: int,
    stages: tuple[int, ...],
) -> tuple[Scores, float]:
    """Returns the scores of members and nonmembers by attack, and CPU seconds for all of them."""
    start = time.process_time()
    plan = ShadowPlan(recipe, sum(stages), sn.Shield(model), **sets, seed=seed, copies=False)
    shadows = train_cascade(plan, stages, engine="inline")
    game = Game(sn.Shield(model), **sets, seed=seed, shadows=shadows)
    found = all_scores(game, sets["members"], sets["nonmembers"], 1)
    seconds = time.process_time() - start
    kept = [name for name in OURS if name in found]
    return {name: (found[name].members, found[name].nonmembers) for name in kept}, seconds


def theirs(
    python: str, task: Task, model: nn.Module, sets: dict[str, Examples], classes: int
) -> tuple[Scores, float, str]:
    """Runs SACRO-ML's LiRA on the same target; returns scores, CPU seconds and its version."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = {
            f"{role}_{part}": values.numpy()
            for role, one in sets.items()
            for part, values in (("x", one.inputs), ("y", one.labels))
        }
        np.savez(folder / "data.npz", **arrays)
        weights = zip(("w1", "b1", "w2", "b2"), model.parameters(), strict=True)
        np.savez(folder / "target.npz", **{key: one.detach().numpy() for key, one in weights})
        settings = {
            "hidden": HIDDEN,
            "classes": classes,
            "epochs": task.epochs,
            "lr": LR,
            "momentum": MOMENTUM,
            "weight_decay": 0.0,
            "batch": BATCH,
            "shadows": SHADOWS,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        worker = Path(__file__).with_name("sacro_worker.py")
        subprocess.run([python, str(worker), str(folder)], check=True, stdout=subprocess.DEVNULL)
        result = json.loads((folder / "result.json").read_text())
    scores = {
        name: (
            torch.tensor(pair["members"], dtype=torch.float64),
            torch.tensor(pair["nonmembers"], dtype=torch.float64),
        )
        for name, pair in result["scores"].items()
    }
    return scores, result["cpu_s"], result["sacroml"]


@dataclass(frozen=True)
class Line:
    """One attack on one data set, pooled over targets."""

    who: str
    ranked: Interval
    rate: Interval | None
    seconds: float
    scores: tuple[Tensor, Tensor]


def attacked(task: Task, python: str) -> tuple[list[Line], list[Line], str]:
    """Attacks every target with both; returns our lines and theirs."""
    inputs, labels = task.load()
    classes = int(labels.max()) + 1
    own: dict[tuple[int, ...], list[Scores]] = {stages: [] for stages in STAGES}
    seconds = dict.fromkeys(STAGES, 0.0)
    other: list[Scores] = []
    peer_seconds, peer = 0.0, ""
    for seed in tqdm(range(task.targets), desc=task.name, leave=False):
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
        picked = order[: task.rows], order[task.rows : 2 * task.rows]
        sets = {
            name: Examples(name, inputs[rows], labels[rows])
            for name, rows in zip(("members", "nonmembers"), picked, strict=True)
        }
        recipe = sn.Recipe(
            partial(network, inputs.shape[1], classes),
            epochs=task.epochs,
            learning_rate=LR,
            batch_size=BATCH,
            momentum=MOMENTUM,
        )
        model = recipe((sets["members"].inputs, sets["members"].labels), 1000 + seed)
        for stages in STAGES:
            found, spent = ours(recipe, model, sets, seed, stages)
            own[stages].append(found)
            seconds[stages] += spent
        found, spent, peer = theirs(python, task, model, sets, classes)
        other.append(found)
        peer_seconds += spent
    return (
        [
            replace(line, who=f"{line.who}, {' + '.join(map(str, stages))} shadows")
            for stages in STAGES
            for line in _lines(own[stages], seconds[stages] / task.targets)
        ],
        _lines(other, peer_seconds / task.targets),
        peer,
    )


def _lines(runs: list[Scores], seconds: float) -> list[Line]:
    lines = []
    for name in runs[0]:
        scores = tuple(torch.cat([run[name][side] for run in runs]).double() for side in (0, 1))
        lines.append(Line(name, auc(*scores), tpr_at_fpr(*scores, 0.01), seconds, scores))
    return lines


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "too few nonmembers"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def table(results: dict[str, tuple[list[Line], list[Line], str]]) -> str:
    """Writes a line for each attack, with ratios to SACRO-ML's advised setting."""
    lines = [
        "| data | attack | AUC | TPR at 1 % FPR | CPU s a target | TPR to its default "
        "| TPR to its best | CPU to it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (own, other, version) in results.items():
        usual = next(one for one in other if one.who == DEFAULT)
        best = max(other, key=lambda one: one.rate.value)
        peers = [(one.who + "; its default" * (one is usual), one) for one in other]
        for who, one in [
            *((f"SACRO-ML {version}, {who}", one) for who, one in peers),
            *((f"shieldnet, {one.who}", one) for one in own),
        ]:
            ratios = [one.rate.value / max(peer.rate.value, 1e-9) for peer in (usual, best)]
            lines.append(
                f"| {name} | {who} | {_cell(one.ranked)} | {_cell(one.rate)} | {one.seconds:.1f} "
                f"| {ratios[0]:.2f} | {ratios[1]:.2f} | {one.seconds / usual.seconds:.2f} |"
            )
    return "\n".join(lines)


def draw(results: dict[str, tuple[list[Line], list[Line], str]]) -> None:
    """Draws ROC curves on log axes: ours, theirs, and chance."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axes, (name, (own, other, _)) in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        shown = [("shieldnet " + one.who, one, "-") for one in own if one.who in SHOWN]
        shown += [("SACRO-ML LiRA", one, "--") for one in other if one.who == ADVISED]
        for label, one, style in shown:
            axes.plot(*_roc(one.scores), style, label=label, linewidth=1.4)
        axes.plot([1e-4, 1], [1e-4, 1], color="#64748b", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1), title=name)
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(Path(__file__).parent / "membership.png", dpi=110)


def _roc(scores: tuple[Tensor, Tensor]) -> tuple[list[float], list[float]]:
    members, nonmembers = scores
    thresholds = torch.cat([members, nonmembers]).unique().flip(0)
    rates = [
        1 - torch.searchsorted(side.sort().values, thresholds).double() / len(side)
        for side in (nonmembers, members)
    ]
    return rates[0].tolist(), rates[1].tolist()


def main() -> None:
    """Attacks all targets, writes the table and the image."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sacro", required=True, metavar="PYTHON", help="with sacroml installed")
    parser.add_argument("--only", choices=[task.name for task in TASKS], help="one data set")
    parser.add_argument("--targets", type=int, help="models that are attacked, of each data set")
    settings = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"Expected the data in {DATA}.")
    torch.set_num_threads(1)
    tasks = [task for task in TASKS if settings.only in (None, task.name)]
    if settings.targets:
        tasks = [replace(task, targets=settings.targets) for task in tasks]
    results = {task.name: attacked(task, settings.sacro) for task in tasks}
    if len(tasks) < len(TASKS):
        print(table(results))
        return
    draw(results)
    text = "\n\n".join([READING.strip(), table(results), "![membership](membership.png)"])
    write_section("membership", "python benchmarks/membership.py --sacro PYTHON", text)


if __name__ == "__main__":
    main()
