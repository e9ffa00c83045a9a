"""What the classic countermeasures do: accuracy, robustness, inversion, membership, extraction.

Every row trains a target among planted canaries and eight shadows in the same way, and audits it.
Classification of digits, MNIST, a medical table and credit risk; a regression and a segmentation
beside, where fewer attacks apply. Several seeds, each with its own split, target and shadows.

    python benchmarks/countermeasures.py
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results import RESULTS, write_section
from torch import Tensor, nn
from tqdm import tqdm

import shieldnet as sn
import shieldnet.demo
from shieldnet.attacks import ClassInversion, Extraction, Inversion, Membership
from shieldnet.attacks.adversary.decoders import KernelRidge, Ridge
from shieldnet.attacks.base import Game
from shieldnet.core.statistics import auc, mean
from shieldnet.data.examples import Examples
from shieldnet.running.engine import run
from shieldnet.shield.presets import PRESETS
from shieldnet.training.losses import Criterion

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.segmentation import scenes

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SEEDS = (0, 1, 2)
SHADOWS = 8
DELTA = 1e-4
COLORS = ("#c2410c", "#0f766e", "#3b76ee", "#a87908")

READING = f"""
{len(SEEDS)} seeds; values are means over seeds, with Student's 95 % interval. Every row trains a
target and {SHADOWS} shadows in the same way; a sixth of what is pooled are canaries (another label,
drawn at random), of which a coin plants half. robust: accuracy on the worst inputs within a linf
ball (PGD, 10 steps, on the bare model). inversion: leakage of answers about inputs (best of ridge
and kernel ridge). class: classes drawn so that an independent judge knows them, by queries.
membership: AUC of the worst attack on ordinary records; canaries: of the worst attack on canaries,
chosen with hindsight (their rate at 1 % false positives: see the section on fine-tuning).
extraction: how often a copy agrees with the model. Masks (open, balanced, strict) are put before
the model of the first row, and "DP 50 + strict" before that of epsilon 50. DP-SGD: full batches,
from scratch, delta 1e-4; epsilon is proven for the training, canaries included.

What textbooks promise and what is seen: (1) no countermeasure in training lowers the inversion of
answers but positive smoothing, a little; masks do. (2) No mask hides the canaries (AUC .92 to .99
behind the label alone); weak DP-SGD does better than each of them at no less accuracy, and together
with a mask better still. (3) Adversarial training gives robust accuracy, and easier inversion.
(4) Smoothing raises membership on every data set. (5) Classes are drawn whatever is done. (6) Most
regularizers also help accuracy here: a tenth of the labels are wrong, and "none" learns them.
"""


@dataclass(frozen=True)
class Task:
    """One data set of classes. sizes: pooled for training, nonmembers, auxiliary."""

    name: str
    rows: Callable[[], tuple[Tensor, Tensor]]
    sizes: tuple[int, int, int]
    radius: float
    shift: bool = False
    low: float = 0.0
    high: float = 1.0


def digit_rows() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's digits."""
    task = sn.demo.digits()
    return task.inputs, task.labels


def mnist_rows() -> tuple[Tensor, Tensor]:
    """Returns every fifteenth of MNIST's pictures (they are sorted by class), as 14 x 14."""
    with np.load(DATA / "mnist.npz") as file:
        inputs = torch.from_numpy(file["Xtr"][::15]).float().unsqueeze(1) / 255
        labels = torch.from_numpy(file["ytr"][::15]).long()
    return nn.functional.avg_pool2d(inputs, 2), labels


def cancer_rows() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's breast cancer table, standardized."""
    task = sn.demo.breast_cancer()
    return task.inputs, task.labels


def credit_rows() -> tuple[Tensor, Tensor]:
    """Returns German credit: codes as columns of 0 and 1, numbers standardized."""
    lines = (DATA / "german_credit.data").read_text().split("\n")
    table = np.array([line.split() for line in lines if line.strip()])
    columns = []
    for column in table[:, :-1].T:
        if column[0].startswith("A"):
            columns += [(column == code).astype(float) for code in np.unique(column)]
        else:
            values = column.astype(float)
            columns.append((values - values.mean()) / values.std())
    inputs = torch.tensor(np.stack(columns, 1), dtype=torch.float32)
    return inputs, torch.tensor(table[:, -1].astype(int) - 1)


TASKS = (
    Task("digits", digit_rows, (750, 400, 640), 0.1, shift=True),
    Task("MNIST", mnist_rows, (1000, 600, 900), 0.1, shift=True),
    Task("breast cancer", cancer_rows, (240, 160, 160), 0.1, low=-5.0, high=10.0),
    Task("German credit", credit_rows, (450, 300, 250), 0.1, low=-5.0, high=10.0),
)


def network(inputs: Tensor, labels: Tensor) -> nn.Module:
    """Makes one hidden layer of 128 units."""
    outputs = int(labels.max()) + 1
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs[0].numel(), 128), nn.ReLU(), nn.Linear(128, outputs)
    )


def rows_of(task: Task) -> dict[str, tuple[sn.countermeasures.Countermeasure, ...]]:
    """Lists the countermeasures in training."""
    ball = {"epsilon": task.radius, "steps": 3, "low": task.low, "high": task.high}
    move = (
        sn.countermeasures.Augment(shift=1) if task.shift else sn.countermeasures.Augment(noise=0.3)
    )
    return {
        "none": (),
        "augmentation": (move,),
        "L2 .01": (sn.countermeasures.WeightDecay(1e-2),),
        "adversarial": (sn.countermeasures.Adversarial(**ball),),
        "TRADES": (sn.countermeasures.Adversarial(**ball, trades=3.0),),
        "smoothing +.2": (sn.countermeasures.LabelSmoothing(0.2),),
        "smoothing -.05": (sn.countermeasures.LabelSmoothing(-0.05),),
        "anti-adversarial": (
            sn.countermeasures.AntiAdversarial(task.radius, low=task.low, high=task.high),
        ),
        "BiDO": (sn.countermeasures.BiDO(("2",)),),
        "MID": (sn.countermeasures.MID("2", 3e-3),),
        "L2 + augmentation": (sn.countermeasures.WeightDecay(1e-2), move),
        "DP, epsilon 50": (sn.DPSGD(50.0, DELTA),),
        "DP, epsilon 8": (sn.DPSGD(8.0, DELTA),),
        "DP, epsilon 2": (sn.DPSGD(2.0, DELTA),),
    }


@dataclass(frozen=True)
class Trainer:
    """Trains one network with countermeasures: for the target and for its shadows."""

    wide: int
    countermeasures: tuple[sn.countermeasures.Countermeasure, ...]

    def __call__(self, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = network(data[0], torch.tensor([self.wide - 1]))
        is_private = any(isinstance(one, sn.DPSGD) for one in self.countermeasures)
        settings = (
            {"epochs": 80, "learning_rate": 0.5}
            if is_private
            else {"epochs": 40, "batch_size": 64, "learning_rate": 0.1}
        )
        found = sn.finetune(
            model, data, *self.countermeasures, seed=seed, progress=False, **settings
        )
        return found.model


def audited(task: Task, name: str, seed: int) -> dict[str, dict[str, float]]:
    """Trains and audits one row of the table with one seed; masks come with the first row."""
    inputs, labels = task.rows()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    pool, rest, owned = (order[: sum(task.sizes)]).split(list(task.sizes))
    planted = sn.plant_canaries((inputs[pool], labels[pool]), count=task.sizes[0] // 6, seed=seed)
    trainer = Trainer(int(labels.max()) + 1, rows_of(task)[name])
    model = trainer(planted.data, 1000 + seed)
    masks = {
        "none": {"open": "open", "balanced": "balanced", "strict": "strict"},
        "DP, epsilon 50": {"DP 50 + strict": "strict"},
    }.get(name, {})
    shields = {mask: sn.Shield(model, *PRESETS[preset]) for mask, preset in masks.items()}
    attacks = (
        Inversion(decoders=(Ridge(), KernelRidge()), pictures=False),
        Membership(),
        Extraction(students=(Ridge(), KernelRidge())),
        *((ClassInversion(),) if task.name == "digits" else ()),
    )
    report = sn.audit(
        {**shields} if shields else sn.Shield(model),
        members=planted.members,
        nonmembers=(inputs[rest], labels[rest]),
        auxiliary=(inputs[owned], labels[owned]),
        canaries=planted,
        train=trainer,
        shadows=SHADOWS,
        tier=sn.Tier("study", attacks, shadows=SHADOWS),
        engine="inline",
        seed=seed,
        progress=False,
    )
    x, y = inputs[rest], labels[rest]
    attack = sn.countermeasures.Adversarial(task.radius, 10, low=task.low, high=task.high)
    worst = attack.move(x, y, model, Criterion())
    robust = float((model(worst).argmax(-1) == y).double().mean())
    return {
        name if subject.name == "bare" else subject.name: {
            "robust": robust,
            **{
                column: subject[finding].value
                for column, finding in COLUMNS.items()
                if any(one.name == finding for one in subject.findings)
            },
        }
        for subject in report.subjects
    }


COLUMNS = {
    "accuracy": "accuracy",
    "inversion": "inversion",
    "class": "class_inversion",
    "membership": "membership.auc",
    "canaries": "membership.canaries.auc",
    "extraction": "extraction.fidelity",
}
SHOWN = (
    "accuracy",
    "robust",
    "inversion",
    "class",
    "membership",
    "canaries",
    "extraction",
)
PLAIN_COLUMNS = ("score", "robust", "inversion", "membership")


def regression(name: str, seed: int) -> dict[str, float]:
    """Trains and attacks a regression of diabetes: R2, robust R2, inversion, membership by loss."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    inputs = torch.tensor(data.data, dtype=torch.float32)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    labels = torch.tensor(data.target, dtype=torch.float32)
    labels = (labels - labels.mean()) / labels.std()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    pool, rest, owned = order.split([142, 150, 150])
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
    chosen, shield = PLAIN_ROWS[name](0.25, -5.0, 5.0)
    model = _plainly(model, (inputs[pool], labels[pool]), chosen, seed, "values")
    sets = {
        role: Examples(role, inputs[part])
        for role, part in (("members", pool), ("nonmembers", rest), ("auxiliary", owned))
    }
    defenses = (sn.ClipRange(-2.0, 2.0), sn.RoundTo(0.5)) if shield else ()
    shielded = sn.Shield(model, *defenses, outputs="values")
    attack = Inversion(decoders=(Ridge(), KernelRidge()), pictures=False)
    leaked = attack(Game(shielded, **sets, seed=seed)).findings[0].value
    loss = Criterion("values")

    def errors(part: Tensor) -> Tensor:
        return loss(shielded(inputs[part]), labels[part]).detach().double()

    moved = sn.countermeasures.Adversarial(0.25, 10, low=-5, high=5).move(
        inputs[rest], labels[rest], model, loss
    )
    spread = labels[rest].var(unbiased=False)
    worst = loss(model(moved).detach(), labels[rest]).mean()
    return {
        "score": float(1 - errors(rest).mean() / spread),
        "robust": float(1 - worst / spread),
        "inversion": leaked,
        "membership": auc(-errors(pool), -errors(rest)).value,
    }


def segmentation(name: str, seed: int) -> dict[str, float]:
    """Trains and attacks a segmentation of drawn scenes: pixels right, robust, membership."""
    inputs, labels = scenes(160, seed=seed)
    inputs, labels = inputs[:, :, ::2, ::2], labels[:, ::2, ::2]
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 5, 3, padding=1),
    )  # fmt: skip
    chosen, shield = PLAIN_ROWS[name](0.1, -1.0, 2.0)
    model = _plainly(model, (inputs[:60], labels[:60]), chosen, seed, "logits")
    shielded = sn.harden(model, "balanced", axis=1) if shield else sn.Shield(model, axis=1)
    loss = Criterion(axis=1)

    def errors(part: slice) -> Tensor:
        return loss(shielded(inputs[part]), labels[part]).detach().double()

    attack = sn.countermeasures.Adversarial(0.1, 5, low=-1, high=2)
    rest = slice(60, 160)
    moved = attack.move(inputs[rest], labels[rest], model, loss)
    right = [(model(x).argmax(1) == labels[rest]).double().mean() for x in (inputs[rest], moved)]
    return {
        "score": float(right[0]),
        "robust": float(right[1]),
        "membership": auc(-errors(slice(0, 60)), -errors(rest)).value,
    }


def _plainly(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    chosen: Sequence[sn.countermeasures.Countermeasure],
    seed: int,
    outputs: str,
) -> nn.Module:
    is_private = any(isinstance(one, sn.DPSGD) for one in chosen)
    settings = (
        {"epochs": 60, "learning_rate": 0.1}
        if is_private
        else {"epochs": 60, "batch_size": 16, "learning_rate": 0.02}
    )
    return sn.finetune(
        model, data, *chosen, outputs=outputs, seed=seed, progress=False, **settings
    ).model


Chosen = tuple[tuple[sn.countermeasures.Countermeasure, ...], bool]
PLAIN_ROWS: dict[str, Callable[[float, float, float], Chosen]] = {
    "none": lambda radius, low, high: ((), False),
    "augmentation": lambda radius, low, high: ((sn.countermeasures.Augment(noise=radius),), False),
    "L2 .01": lambda radius, low, high: ((sn.countermeasures.WeightDecay(1e-2),), False),
    "adversarial": lambda radius, low, high: (
        (sn.countermeasures.Adversarial(radius, 3, low=low, high=high),),
        False,
    ),
    "DP, epsilon 8": lambda radius, low, high: ((sn.DPSGD(8.0, 1e-3),), False),
    "coarse answers": lambda radius, low, high: ((), True),
}


def job(kind: str, task: Task | None, name: str, seed: int) -> dict[str, dict[str, float]]:
    """Runs one cell."""
    if task is not None:
        return audited(task, name, seed)
    return {name: {"regression": regression, "segmentation": segmentation}[kind](name, seed)}


Cells = dict[str, dict[str, dict[str, list[float]]]]


def measured(seeds: Sequence[int], only: Sequence[str]) -> Cells:
    """Runs everything, on all cores, and gathers values by task, row and column."""
    jobs = [
        (task.name, task, name, seed)
        for task in TASKS
        for name in rows_of(task)
        for seed in seeds
        if not only or task.name in only
    ]
    jobs += [
        (kind, None, name, seed)
        for kind in ("regression", "segmentation")
        for name in PLAIN_ROWS
        for seed in seeds
        if not only or kind in only
    ]
    with tqdm(total=len(jobs)) as bar:
        found = run([(job, one) for one in jobs], engine="processes", done=bar.update)
    cells: Cells = {}
    for (kind, *_), rows in zip(jobs, found, strict=True):
        for name, values in rows.items():
            for column, value in values.items():
                row = cells.setdefault(kind, {}).setdefault(name, {})
                row.setdefault(column, []).append(value)
    return cells


def _cell(values: Sequence[float] | None) -> str:
    if not values:
        return "-"
    if len(set(values)) == 1:
        return f"{values[0]:.3f}"
    found = mean(torch.tensor(values, dtype=torch.float64))
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def table(kind: str, rows: dict[str, dict[str, list[float]]]) -> str:
    """Writes one task's table."""
    columns = PLAIN_COLUMNS if kind in ("regression", "segmentation") else SHOWN
    shown = [one for one in columns if any(one in row for row in rows.values())]
    lines = [f"| {kind} | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(_cell(row.get(one)) for one in shown)} |")
    return "\n".join(lines)


def draw() -> None:
    """Draws the tables of RESULTS.md: a panel for each column, a color for each task."""
    page = RESULTS.read_text(encoding="utf-8").split("<!-- countermeasures -->")[1]
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    columns = ("accuracy", "robust", "inversion", "membership", "canaries", "extraction")
    panels = dict(zip(columns, figure.subplots(1, len(columns), sharey=True), strict=True))
    names: list[str] = []
    for offset, (task, color) in enumerate(zip(TASKS, COLORS, strict=True)):
        lines = page.split(f"| {task.name} | ")[1].split("\n\n")[0].split("\n")
        header = [one.strip() for one in lines[0].split("|")]
        names = [line.split("|")[1].strip() for line in lines[2:]]
        for place, line in enumerate(lines[2:]):
            cells = [one.strip() for one in line.split("|")][2:]
            for column, cell in zip(header, cells, strict=False):
                numbers = [float(one) for one in re.findall(r"-?\d+\.\d+", cell)]
                if column in panels and numbers:
                    at = -place + 0.27 - 0.18 * offset
                    value, low, high = numbers if len(numbers) == 3 else numbers * 3
                    panels[column].plot([low, high], [at, at], color=color, linewidth=1)
                    panels[column].plot(value, at, "o", color=color, markersize=4)
    for column, panel in panels.items():
        for place in range(len(names)):
            panel.axhline(-place - 0.5, color="0.9", linewidth=0.6)
        panel.set_title(column, fontsize=10)
        panel.set_xlim(*{"inversion": (-0.1, 0.7), "robust": (0, 1)}.get(column, (0.5, 1.02)))
        panel.spines[["top", "right"]].set_visible(False)
    panels["accuracy"].set_yticks([-place for place in range(len(names))], names)
    dots = [
        Line2D([], [], color=color, marker="o", markersize=4, linewidth=1, label=task.name)
        for task, color in zip(TASKS, COLORS, strict=True)
    ]
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), frameon=False)
    figure.savefig(Path(__file__).with_name("countermeasures.png"), dpi=80)


def main() -> None:
    """Runs the study and writes its section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[], help="tasks to run, and write nothing")
    arguments = parser.parse_args()
    cells = measured(SEEDS, arguments.only)
    tables = "\n\n".join(table(kind, rows) for kind, rows in cells.items())
    if arguments.only:
        print(tables)
        return
    text = f"{READING.strip()}\n\n{tables}\n\n![countermeasures](countermeasures.png)"
    write_section("countermeasures", "python benchmarks/countermeasures.py", text)
    draw()


if __name__ == "__main__":
    main()
