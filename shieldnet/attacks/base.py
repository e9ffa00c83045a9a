"""The game that every attack plays: it may ask the shield, and owns auxiliary data."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shieldnet.data import Examples
from shieldnet.finding import NotApplicable, Outcome
from shieldnet.shield import Shield

_BATCH = 1024


@dataclass(frozen=True)
class Answers:
    """Holds what the shield released about some rows, averaged over the queries.

    Shapes: distribution (rows, classes) that sums to 1; logits (rows, classes) where the shield
    releases logits, else None.
    """

    distribution: Tensor
    logits: Tensor | None


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
    _kept: dict[tuple[str, int], Answers] = field(default_factory=dict, repr=False)

    def ask(self, examples: Examples, queries: int = 1) -> Answers:
        """Asks the shield ``queries`` times about each row and averages the answers."""
        key = (examples.name, queries)
        if key not in self._kept:
            self._kept[key] = _ask(self.shield, examples.inputs, queries)
        return self._kept[key]

    def ask_again(self, examples: Examples) -> Answers:
        """Asks once more: the same answers from a deterministic shield, new ones from another."""
        if self.shield.deterministic:
            return self.ask(examples)
        return _ask(self.shield, examples.inputs, 1)

    def views(self, answers: Answers) -> dict[str, Tensor]:
        """Reads answers in every way that an adversary who knows the shield tries.

        Shapes: -> each map (rows, features).
        """
        logits = answers.logits if self.shield.releases_scores else None
        return self.shield.adversary_view(answers.distribution, logits)

    def model_labels(self, examples: Examples) -> Tensor:
        """Returns the labels that the bare model gives: what the user agreed to release.

        Shapes: -> (rows,) int64.
        """
        return in_batches(self.shield.model, examples.inputs).argmax(-1)

    @property
    def classes(self) -> int:
        """Counts the classes of an answer."""
        return self.ask(self.nonmembers).distribution.shape[-1]

    def owned(self) -> Examples:
        """Returns the auxiliary data, or raises NotApplicable where there is none."""
        if self.auxiliary is None:
            raise NotApplicable("it needs auxiliary data: pass auxiliary=...")
        return self.auxiliary


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
        parts = [module(part.to(device)).cpu() for part in inputs.split(_BATCH)]
    return torch.cat(parts)


def _ask(shield: Shield, inputs: Tensor, queries: int) -> Answers:
    distribution: Tensor | None = None
    logits: Tensor | None = None
    for _ in range(queries):
        released = in_batches(shield, inputs)
        stated = shield.distribution(released) / queries
        distribution = stated if distribution is None else distribution + stated
        if shield.release == "logits":
            logits = released / queries + (0 if logits is None else logits)
    assert distribution is not None  # noqa: S101 - queries >= 1, for the type checker
    return Answers(distribution, logits)
