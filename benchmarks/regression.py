"""What a regression gives away about its records, bare and behind shields, with its own targets.

Diabetes: least squares on 40 patients, whose leverage is high, and on 140. Prices: 200 drawn
homes, a network that memorizes them; the null is the same attack on homes it never saw.
Shadows are trained as the target was. The mean over the seeds.

    python benchmarks/regression.py
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from results import write_section
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import AttributeRecovery, Game, Membership
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.checks.values import accuracy_of_values
from shieldnet.data.examples import Examples

SEEDS = (0, 1, 2)
SHADOWS = 16
HOMES = ("rooms", "age", "income", "north", "west", "garden", "old town", "view")
Data = tuple[Tensor, Tensor]


class Linear(nn.Module):
    """Answers by weights, the last of which is the constant."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight[:-1] + self.weight[-1]


class InUnits(nn.Module):
    """A network's answers in the unit of its targets."""

    def __init__(self, network: nn.Module, center: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("center", center)
        self.register_buffer("deviation", deviation)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.deviation + self.center


def least_squares(data: Data, seed: int) -> nn.Module:
    """Fits weights and a constant."""
    inputs, targets = data
    columns = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    return Linear(torch.linalg.lstsq(columns, targets.unsqueeze(1)).solution)


def network() -> nn.Module:
    """Makes a fresh network for homes."""
    layers = (nn.Linear(len(HOMES), 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(64, 1))


def memorized(data: Data, seed: int) -> nn.Module:
    """Trains until the homes' prices are known one by one."""
    inputs, targets = data
    center, deviation = targets.mean(), targets.std()
    recipe = sn.Recipe(network, epochs=60, learning_rate=2e-3, optimizer="adam", outputs="values")
    return InUnits(recipe((inputs, (targets - center) / deviation), seed), center, deviation)


def patients() -> tuple[Data, tuple[str, ...], str]:
    """Returns the patients of scikit-learn's diabetes data, their columns, and the secret one."""
    data = load_diabetes()
    inputs = torch.tensor(data.data, dtype=torch.float32)
    targets = torch.tensor(data.target, dtype=torch.float32)
    return (inputs, targets), tuple(data.feature_names), "sex"


def homes() -> tuple[Data, tuple[str, ...], str]:
    """Draws homes, whose prices have a long tail."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1600, len(HOMES), generator=generator)
    inputs[:, 5:] = (inputs[:, 5:] > 0).float()
    rooms, age, income, north, west = inputs[:, :5].T
    price = income + 0.4 * rooms - 0.2 * age + torch.sin(2 * north) * west + 0.5 * inputs[:, 7]
    price = (price / 3 + 0.3 * torch.randn(1600, generator=generator)).exp() * 200
    return (inputs, price), HOMES, "view"


TASKS: dict[str, tuple[Callable[..., object], Callable[..., nn.Module], int, bool]] = {
    "diabetes, 40 patients": (patients, least_squares, 40, False),
    "diabetes, 140 patients": (patients, least_squares, 140, False),
    "homes, memorized, 200": (homes, memorized, 200, False),
    "homes, null": (homes, memorized, 200, True),
}


def chains(targets: Tensor) -> dict[str, tuple[sn.Defense, ...]]:
    """Returns the shields around a range that nine of ten targets lie in."""
    low, high = (float(end) for end in targets.quantile(torch.tensor([0.05, 0.95])))
    inside = sn.ClipRange(low, high)
    return {
        "bare": (),
        "64 steps": (inside, sn.RoundTo((high - low) / 64)),
        "4 steps": (inside, sn.RoundTo((high - low) / 4)),
        "noise, a quarter of the range": (inside, sn.GaussianNoise((high - low) / 4)),
    }


def measured(name: str, seed: int) -> dict[str, dict[str, float]]:
    """Returns the findings of one target behind each shield."""
    load, train, size, is_null = TASKS[name]
    (inputs, targets), columns, secret = load()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    ends = (size, 2 * size, 3 * size) if is_null else (size, 2 * size)
    members, nonmembers, *others = order.tensor_split(ends)
    trained = others[0] if is_null else members
    sets = {
        role: Examples(role, inputs[rows], targets[rows], has_targets=True)
        for role, rows in (
            ("members", members),
            ("nonmembers", nonmembers),
            ("auxiliary", others[-1][:400]),
        )
    }
    model = train((inputs[trained], targets[trained]), seed).eval()
    bare = sn.Shield(model, outputs="values")
    shadows = train_shadows(ShadowPlan(train, SHADOWS, bare, **sets, seed=seed), engine="inline")
    results = {}
    for shield, chain in chains(targets).items():
        game = Game(
            sn.Shield(model, *chain, outputs="values"),
            **sets,
            seed=seed,
            columns=columns,
            sensitive=(secret,),
            shadows=shadows,
        )
        untested: list[str] = []
        findings = [*accuracy_of_values(game, untested)]
        for attack in (Membership(fprs=(0.01, 0.05)), AttributeRecovery()):
            findings += attack(game).findings
        results[shield] = {finding.name: finding.value for finding in findings}
    return results


def timed(name: str, seed: int) -> tuple[dict[str, dict[str, float]], float]:
    """Returns what was measured, and the seconds of CPU that it took."""
    torch.set_num_threads(1)
    begun = time.process_time()
    results = measured(name, seed)
    return results, time.process_time() - begun


def main() -> None:
    """Writes the table of every task and shield."""
    shown = {
        "R2": "r2",
        "loss AUC": "membership.loss.auc",
        "LiRA AUC": "membership.LiRA.auc",
        "by pull AUC": "membership.LiRA by pull.auc",
        "copies AUC": "membership.moved copies against shadows.auc",
        "worst AUC": "membership.auc",
        "TPR at 5%": "membership.tpr_at_fpr_5e-2",
        "attribute AUC": None,
    }
    lines = [
        f"| records | shield | {' | '.join(shown)} |",
        f"|---|---|{'---:|' * len(shown)}",
    ]
    jobs = [(name, seed) for name in TASKS for seed in SEEDS]
    with ProcessPoolExecutor(2) as pool:
        done = dict(zip(jobs, pool.map(timed, *zip(*jobs, strict=True)), strict=True))
    for name in TASKS:
        runs = [done[name, seed][0] for seed in SEEDS]
        secret = "sex" if "diabetes" in name else "view"
        for shield in runs[0]:
            cells = []
            for finding in shown.values():
                key = finding or f"attribute.{secret}"
                values = [run[shield][key] for run in runs if key in run[shield]]
                cells.append(f"{statistics.mean(values):.3f}" if values else "")
            lines.append(f"| {name} | {shield} | {' | '.join(cells)} |")
    taken = sum(seconds for _, seconds in done.values())
    text = (
        "## Regressions\n\n"
        f"Mean of {len(SEEDS)} seeds, {SHADOWS} shadows trained as the target was, "
        f"{taken:.0f} CPU s in all. "
        "*by pull* is LiRA with one law for what training on a record leaves of its residual, "
        "*copies* the same on mean answers about a record and 16 moved copies; *worst* is the "
        "highest of all attacks, chosen on the records that it is shown for. *attribute* is the "
        "AUC of a patient's sex, or of a home's view, from one answer and the other columns.\n\n"
    )
    write_section("regression", "python benchmarks/regression.py", text + "\n".join(lines))


if __name__ == "__main__":
    main()
