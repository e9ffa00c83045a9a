"""How far a regression's released values lie from its targets."""

from collections.abc import Iterator

import torch
from torch import Tensor

from shieldnet.attacks import Game
from shieldnet.core.statistics import mean, saved_share
from shieldnet.findings.finding import Finding, Threat

_MIN_ROWS = 3  # fewer have no interval


def accuracy_of_values(game: Game, untested: list[str]) -> Iterator[Finding]:
    """Measures R2 and the mean absolute error of released values, R2 of each group too.

    Several outputs count alike in R2: each in the variance of its own target. Where a target does
    not vary R2 is not defined, and its output is left out, by name.
    """
    targets = game.labels(game.nonmembers)
    missed = game.ask(game.nonmembers).distribution.double() - targets
    everyone = torch.ones(len(targets), dtype=torch.bool)
    groups = {"r2": everyone} | {
        f"r2.group.{group.name}": group.nonmembers for group in game.groups
    }
    for name, rows in groups.items():
        yield from _share_told(name, targets[rows], missed[rows], game.seed, untested)
    if len(targets) < _MIN_ROWS:
        untested.append(f"mae: needs {_MIN_ROWS} nonmembers, there are {len(targets)}")
        return
    outputs = targets.shape[1]
    # The best constant is the median, of each output.
    blind = (targets - targets.median(0).values).abs().mean()
    yield Finding.of(
        "mae",
        mean(missed.abs().mean(1), within=(0.0, float("inf"))),
        samples=len(targets),
        baseline=float(blind),
        threat=Threat(),
        source="released values on nonmembers, in the target's unit; baseline: the median target",
        note="" if outputs == 1 else f"mean over {outputs} outputs, each in its own unit",
    )


def _share_told(
    name: str, targets: Tensor, missed: Tensor, seed: int, untested: list[str]
) -> Iterator[Finding]:
    """Measures R2 over the outputs whose targets vary. Shapes: both (rows, outputs)."""
    if len(targets) < _MIN_ROWS:
        untested.append(f"{name}: needs {_MIN_ROWS} nonmembers, there are {len(targets)}")
        return
    varies = targets.amax(0) > targets.amin(0)
    if not varies.all():
        constant = (~varies).nonzero().flatten().tolist()
        which = "" if len(varies) == 1 else f" of output {', '.join(map(str, constant))}"
        untested.append(f"{name}: the target{which} is the same in every row, R2 is not defined")
    if not varies.any():
        return
    off_mean = (targets - targets.mean(0)).square()
    unit = off_mean.mean(0)[varies]
    yield Finding.of(
        name,
        saved_share(
            (missed.square()[:, varies] / unit).mean(1),
            (off_mean[:, varies] / unit).mean(1),
            seed=seed,
        ),
        samples=len(targets),
        baseline=0.0,
        threat=Threat(),
        source="released values against the targets of nonmembers; 0 is their mean",
    )
