"""The game that every attack plays: it may ask the shield, and owns auxiliary data."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shieldnet.data import Examples
from shieldnet.finding import NotApplicable, Outcome
from shieldnet.shield import Shield

_BATCH = 1024
MANY = 256
"""Queries about the same row by an adversary in no hurry."""


@dataclass(frozen=True)
class Answers:
    """Holds what the shield released about some rows, averaged over the queries.

    Shapes: distribution (rows, classes) that sums to 1; logits (rows, classes) where the shield
    releases logits, else None; mean_log, the mean of log p, where several answers were averaged.
    """

    distribution: Tensor
    logits: Tensor | None = None
    mean_log: Tensor | None = None

    def first(self, rows: int) -> "Answers":
        """Keeps the first rows."""
        parts = (self.distribution, self.logits, self.mean_log)
        return Answers(*(None if part is None else part[:rows] for part in parts))  # type: ignore[arg-type]  # the distribution is never None


@dataclass(frozen=True)
class Game:
    """Sets the stage for an attack on ``shield``.

    members trained the model, nonmembers did not; auxiliary is what the adversary owns. Answers
    are asked for once and kept, so that attacks share them.
    """

    shield: Shield
    members: Examples
    nonmembers: Examples
    auxiliary: Examples | None = None
    seed: int = 0
    columns: tuple[str, ...] = ()
    # Not copied by dataclasses.replace: another game has other rows under the same names.
    _kept: dict[tuple[str, int], Answers] = field(default_factory=dict, init=False, repr=False)
    _labels: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def ask(self, examples: Examples, queries: int = 1) -> Answers:
        """Asks the shield ``queries`` times about each row and averages the answers."""
        key = (examples.name, queries)
        if key not in self._kept:
            self._kept[key] = _ask(self.shield, examples.inputs, queries)
        return self._kept[key]

    def own_answers(self, examples: Examples) -> Answers:
        """Returns what an adversary knows of rows that it owns: it averages fresh noise away."""
        return self.ask(examples, 1 if self.shield.deterministic else MANY)

    def views(self, answers: Answers) -> dict[str, Tensor]:
        """Reads answers in every way that an adversary who knows the shield tries.

        Shapes: -> each map (rows, features).
        """
        logits = answers.logits if self.shield.releases_scores else None
        views = self.shield.adversary_view(answers.distribution, logits)
        return views if answers.mean_log is None else {**views, "mean log p": answers.mean_log}

    def model_labels(self, examples: Examples) -> Tensor:
        """Returns the labels that the bare model gives: what the user agreed to release.

        Shapes: -> (rows,) int64.
        """
        if examples.name not in self._labels:
            scores = in_batches(Behind(self.shield), examples.inputs)
            self._labels[examples.name] = scores.argmax(-1)
        return self._labels[examples.name]

    @property
    def classes(self) -> int:
        """Counts the classes of an answer."""
        return self.ask(self.nonmembers).distribution.shape[-1]

    def owned(self) -> Examples:
        """Returns the auxiliary data, or raises NotApplicable where there is none."""
        if self.auxiliary is None:
            raise NotApplicable("it needs auxiliary data: pass auxiliary=...")
        return self.auxiliary


class Behind(nn.Module):
    """The model behind a shield: its true scores as rows, with their graph."""

    def __init__(self, shield: Shield) -> None:
        super().__init__()
        self.shield = shield

    def forward(self, inputs: Tensor) -> Tensor:
        """Shapes: inputs -> (rows, classes) logits, or probabilities where the model gives them."""
        scores = self.shield.answer_in(self.shield.model(inputs))
        return one_row_each(self.shield.chain.layout.opened(scores))


def one_row_each(rows: Tensor) -> Tensor:
    """Drops positions of size one. Shapes: (n, 1, ..., 1, classes) -> (n, classes)."""
    return rows.reshape(len(rows), rows.shape[-1])


@dataclass(frozen=True)
class Attack(ABC):
    """What an adversary does. Called with a game, it returns what it found.

    Errors: NotApplicable, with the reason, where it does not fit the shield or the data.
    """

    @abstractmethod
    def __call__(self, game: Game) -> Outcome:
        """Plays the game and returns findings with intervals."""


def in_batches(module: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Runs a module over all rows, on its own device, without a graph.

    Shapes: inputs (rows, ...) -> what the module gives, on the CPU.
    """
    parameters = getattr(module, "parameters", None)
    first = next(parameters(), None) if parameters else None
    device = inputs.device if first is None else first.device
    with torch.no_grad():
        answers = (module(part.to(device)) for part in inputs.split(_BATCH))
        pick = module.answer_in if isinstance(module, Shield) else _same
        parts = [pick(answer).cpu() for answer in answers]
    return torch.cat(parts)


def _same(answers: Tensor) -> Tensor:
    return answers


def _ask(shield: Shield, inputs: Tensor, queries: int) -> Answers:
    sums: list[Tensor] = []
    for _ in range(queries):
        answers = in_batches(shield, inputs)
        stated = one_row_each(shield.distribution(answers))
        parts = [stated]
        if queries > 1:
            parts.append(stated.clamp_min(1e-30).log())
        if shield.chain.releases_logits:
            parts.append(one_row_each(shield.chain.rows(answers)))
        sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else parts
    means = [total / queries for total in sums]
    return Answers(
        means[0],
        logits=means[-1] if shield.chain.releases_logits else None,
        mean_log=means[1] if queries > 1 else None,
    )
