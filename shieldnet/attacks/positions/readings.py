"""What the released answers at all positions say of their true classes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.answers import inputs_at_once
from shieldnet.attacks.base import Game
from shieldnet.attacks.positions.box_numbers import numbers_in
from shieldnet.attacks.positions.truth import Truth, tokens_of
from shieldnet.core.randomness import noise_about
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent

_NUMBERS_AT_ONCE = 2**20  # of answers in memory; more leave the cache, and take twice as long
_LEAST_LOG = -800.0  # below that of any number above 0


@dataclass(frozen=True)
class Readings:
    """Holds, of every position, what an adversary reads of its true class.

    log_p: log of the released probability of the true class, -inf where none was released. mean,
    deviation: of log p under the released distribution itself. winner: the class with the
    greatest. counted: which positions count; what the others hold means nothing. least: the
    smallest probability above zero that was released. most_frequent: the share of the most
    frequent true class. numbers: that were released beside maps, of a detector's boxes.

    Shapes: log_p, mean, deviation (rows, *positions) float64, winner the same, int64, counted the
    same, bool.
    """

    log_p: Tensor
    mean: Tensor
    deviation: Tensor
    winner: Tensor
    labels: Tensor
    counted: Tensor
    least: float
    numbers: Tensor | None = None

    @property
    def right(self) -> Tensor:
        """Returns where the winner is the true class. Shapes: -> (rows, *positions) bool."""
        return self.winner == self.labels

    @property
    def most_frequent(self) -> float:
        """Returns how often the most frequent class is the true one."""
        known = self.labels[self.counted]
        return float(known.bincount().max()) / len(known)

    def floored(self, floor: float) -> Tensor:
        """Returns log p with a released zero read as ``floor``."""
        return self.log_p.where(self.log_p > -torch.inf, math.log(floor))


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Takes the mean over the positions that count. Shapes: (rows, *positions) twice -> (rows,)."""
    kept = values.double().where(counted, 0.0).flatten(1).sum(1)
    return kept / counted.flatten(1).sum(1)


def truth_of(game: Game, examples: Examples) -> Truth:
    """Returns the true classes of a set's positions."""
    extent = extent_of(game)
    return game.once(
        ("truth", examples.fingerprint()), lambda: Truth.of(examples, extent, game.padding)
    )


def owned_with_truth(game: Game) -> tuple[Examples, ...]:
    """Returns the adversary's own records, where it knows what is true at their positions."""
    owned = game.auxiliary
    if owned is None or (
        owned.labels is None and tokens_of(owned, extent_of(game).positions) is None
    ):
        return ()
    return (owned,)


def base_readings_of(game: Game, examples: Examples, base: Shield) -> Readings:
    """Asks the base about every record of a set. base: the game's, or it behind no defense."""
    key = ("base", base.settings.digest(), examples.fingerprint())
    return game.once(key, lambda: read(replace(game, shield=base), examples))


def extent_of(game: Game) -> Extent:
    """Returns how large an answer is, or raises NotApplicable where it has one position."""
    if game.extent is None:
        raise NotApplicable("it reads answers at positions, the model gives one row an answer")
    return game.extent


def readings_of(game: Game, examples: Examples) -> Readings:
    """Asks the shield once about every record of a set; attacks share what is read.

    Errors: DataError for labels that do not fit.
    """
    return game.once(("readings", examples.fingerprint()), lambda: read(game, examples))


def read(game: Game, examples: Examples) -> Readings:
    """Asks the shield about every record and keeps what it says of the true classes."""
    return read_by(game.shield, examples, truth_of(game, examples), extent_of(game).classes)


def read_by(shield: Shield, examples: Examples, truth: Truth, classes: int) -> Readings:
    """Asks any shield about every record and keeps what it says of the true classes."""
    with noise_about(examples.content, "positions"):
        parts = list(_parts(shield, examples.inputs, truth, classes))
    log_p, mean, deviation, winner, least, numbers = zip(*parts, strict=True)
    return Readings(
        torch.cat(log_p),
        torch.cat(mean),
        torch.cat(deviation),
        torch.cat(winner),
        truth.labels,
        truth.counted,
        min(least),
        joined(numbers),
    )


def _parts(
    shield: Shield, inputs: Tensor, truth: Truth, classes: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, float, Tensor | None]]:
    labels = truth.labels.where(truth.counted, 0)
    size = rows_at_once(Extent(classes, tuple(labels.shape[1:])), inputs)
    for rows, own in zip(inputs.split(size), labels.split(size), strict=True):
        p, numbers = released_with_numbers(shield, rows, classes)
        log_p = p.log()
        finite = log_p.clamp_min(_LEAST_LOG)  # which a zero's chance takes out again
        weighted = p * finite
        mean = weighted.sum(-1)
        square = torch.linalg.vecdot(weighted, finite)
        yield (
            log_p.gather(-1, own.unsqueeze(-1)).squeeze(-1),
            mean,
            (square - mean.square()).clamp_min(0).sqrt(),
            p.argmax(-1),
            float(p.where(p > 0, 1.0).min()),
            numbers,
        )


def joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    """Joins the numbers of several batches; None where there are none."""
    held = [part for part in parts if part is not None]
    return torch.cat(held) if held else None


def rows_at_once(extent: Extent, inputs: Tensor) -> int:
    """Returns how many of these rows are asked about at once: they and their answers are held."""
    answers = _NUMBERS_AT_ONCE // (math.prod(extent.positions) * extent.classes)
    return max(1, min(answers, inputs_at_once(inputs)))


def released(shield: Shield, inputs: Tensor, classes: int) -> Tensor:
    """Returns the distributions that a shield releases.

    Shapes: inputs (rows, ...) -> (rows, *positions, classes) float64, on the CPU.
    """
    return released_with_numbers(shield, inputs, classes)[0]


def released_with_numbers(
    shield: Shield, inputs: Tensor, classes: int
) -> tuple[Tensor, Tensor | None]:
    """Returns the distributions of one answer, and the numbers of a detector's boxes beside them.

    Shapes: inputs (rows, ...) -> (rows, *positions, classes), (rows, WIDTH); float64, on the CPU.
    """
    answers, numbers = answers_about(shield, inputs)
    with torch.no_grad():
        return shield.chain.distribution(answers, classes).double().cpu(), numbers


def answers_about(shield: Shield, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Asks a shield about rows, which the model may write into.

    Shapes: -> as it answers, on its device; numbers of a detector's boxes, (rows, WIDTH), or None.
    """
    first = next(shield.parameters(), None)
    device = inputs.device if first is None else first.device
    with torch.no_grad():
        answers = shield(inputs.to(device, copy=True))
        return shield.answer_in(answers), numbers_in(answers)
