"""The game that every attack plays: it may ask the shield, and owns auxiliary data."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from shieldnet.attacks.answers import Answers, Behind, asked, in_batches, vector_views
from shieldnet.attacks.shadow_answers import PositionShadows, Shadows
from shieldnet.core.randomness import noise_about
from shieldnet.data.beside import Beside
from shieldnet.data.examples import Canaries, Examples, Group
from shieldnet.findings.finding import Finding, NotApplicable, Outcome
from shieldnet.findings.metrics import Metric
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent

_Made = TypeVar("_Made")
Form = Literal["rows", "texts", "maps"]
"""What an audit is about: records with one row an answer, texts, or records with a map."""
MAX_QUERIES = 256
"""Queries about the same row by an adversary in no hurry."""


@dataclass(frozen=True)
class Game:
    """Sets the stage for an attack on ``shield``.

    members trained the model, nonmembers did not; auxiliary is what the adversary owns. Answers
    are asked for once and kept, so that attacks share them.

    sensitive: columns of a table that somebody may want to learn. groups: subgroups whose members
    may be worse off. canaries: records planted to be found. shadows: answers of models that the
    adversary trained itself. blind: how well members are separated from nonmembers without the
    model.
    guarantee: what is claimed of the model's training. beside: sensitive columns that the model
    does not read, of all sets; ``with_beside`` puts them among the others. class_names: what the
    user calls the classes, by number; none where they are numbers.
    extent: of an answer that has several rows of numbers, one for each token or pixel; else None.
    padding: the token that fills up short texts. base: the public model that was fine-tuned, behind
    the same defenses. position_shadows: what the adversary's own models answer at positions.
    last_alone: whether one answer is about the last position alone, and every beginning of a text
    is asked about.
    """

    shield: Shield
    members: Examples
    nonmembers: Examples
    auxiliary: Examples | None = None
    seed: int = 0
    columns: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    canaries: Canaries | None = None
    shadows: Shadows | None = None
    blind: Finding | None = None
    guarantee: Guarantee | None = None
    beside: Beside | None = None
    class_names: tuple[str, ...] = ()
    extent: Extent | None = None
    padding: int | None = None
    base: Shield | None = None
    last_alone: bool = False
    position_shadows: PositionShadows | None = None
    # Not copied by dataclasses.replace: another game may have another shield.
    _kept: dict[tuple[str, int], Answers] = field(default_factory=dict, init=False, repr=False)
    _labels: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _once: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def without_shadows(self) -> "Game":
        """Returns the game without shadows, which keeps answers together with this one."""
        game = replace(self, shadows=None, position_shadows=None)
        object.__setattr__(game, "_kept", self._kept)
        object.__setattr__(game, "_labels", self._labels)
        object.__setattr__(game, "_once", self._once)
        return game

    def behind(self, shield: Shield) -> "Game":
        """Returns the game about another shield of the same model; the base gets its defenses.

        Of a shield that releases the last position alone, an adversary asks about every beginning
        of a text, and has the answers of all positions.
        """
        is_last = self.extent is not None and shield.settings.release_positions == "last"
        asked = at_every_position(shield) if is_last else shield
        base = None if self.base is None else asked.with_model(self.base.model)
        return replace(self, shield=asked, base=base, last_alone=is_last)

    @property
    def served(self) -> Shield:
        """Returns the shield as it is served, where it releases the last position alone."""
        if not self.last_alone:
            return self.shield
        settings = replace(self.shield.settings, release_positions="last")
        return Shield(self.shield.model, settings)

    def once(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Makes something about this shield and these sets once; attacks share it."""
        if key not in self._once:
            self._once[key] = make()
        made: _Made = self._once[key]
        return made

    def with_beside(self) -> "Game":
        """Returns the game with the columns that the model does not read after those that it does.

        The shield gets the columns that it reads alone.
        """
        if self.beside is None:
            return self
        sets = {
            part.name: replace(part, inputs=torch.cat([part.inputs, codes.to(part.inputs)], 1))
            for part, codes in self._besides(self.beside)
        }
        model = ReadsFirst(self.shield.model, self.nonmembers.inputs.shape[1])
        return replace(
            self,
            shield=self.shield.with_model(model),
            columns=(*self.columns, *self.beside.columns),
            beside=None,
            **sets,  # type: ignore[arg-type]  # sets by the names of the fields
        )

    def _besides(self, beside: Beside) -> list[tuple[Examples, Tensor]]:
        sets = (self.members, self.nonmembers, self.auxiliary)
        return [(part, beside.codes[part.name]) for part in sets if part is not None]

    def require_rows(self, least: int, *sets: Examples) -> None:
        """Raises NotApplicable where a set has fewer rows than an attack takes."""
        for examples in sets:
            if len(examples) < least:
                raise NotApplicable(
                    f"needs at least {least} rows of {examples.name}, got {len(examples)}"
                )

    def ask(self, examples: Examples, queries: int = 1) -> Answers:
        """Asks the shield ``queries`` times about each row and averages the answers.

        Answers are kept by what the rows hold, whatever their set is called.
        Errors: NotApplicable where answers have positions (``attacks.positions`` reads these).
        """
        self.require_one_position()
        key = (examples.content, queries)
        if key not in self._kept:
            # Replayed noise depends on the question, not on who asked before.
            with noise_about(*key):
                self._kept[key] = asked(self.shield, examples.inputs, queries)
        return self._kept[key]

    def ask_once_more(self, inputs: Tensor, queries: int = 1) -> Answers:
        """Asks about inputs that nothing is kept of, such as the candidates of a search."""
        return asked(self.shield, as_asked(self.shield, inputs), queries)

    def own_answers(self, examples: Examples) -> Answers:
        """Returns what an adversary knows of rows that it owns: it averages fresh noise away."""
        return self.ask(examples, 1 if self.shield.deterministic else MAX_QUERIES)

    def views(self, answers: Answers) -> dict[str, Tensor]:
        """Reads answers in every way that an adversary who knows the shield tries.

        Shapes: -> each map (rows, features).
        """
        if self.is_vector:
            return vector_views(answers.distribution)
        views = self.shield.adversary_view(answers.distribution, answers.logits)
        return views if answers.mean_log is None else {**views, "mean log p": answers.mean_log}

    def model_labels(self, examples: Examples) -> Tensor:
        """Returns the labels that the bare model gives: what the user agreed to release.

        Values and embeddings have no labels: all rows get the same, whose mean is the baseline.

        Shapes: -> (rows,) int64.
        """
        if self.is_vector:
            return torch.zeros(len(examples), dtype=torch.int64)
        self.require_one_position()
        if examples.content not in self._labels:
            scores = in_batches(Behind(self.shield), examples.inputs)
            self._labels[examples.content] = scores.argmax(-1)
        return self._labels[examples.content]

    @property
    def classes(self) -> int:
        """Counts the classes of an answer; values and embeddings count as one class."""
        return 1 if self.is_vector else self.ask(self.nonmembers).distribution.shape[-1]

    @property
    def is_vector(self) -> bool:
        """Returns whether answers are values or embeddings, not scores of classes."""
        return self.shield.chain.layout.kind in ("values", "embeddings")

    @property
    def reference(self) -> tuple[Examples, ...]:
        """Returns the rows that units and floors are measured on, whichever set a record is in."""
        return (self.members, self.nonmembers) if self.auxiliary is None else (self.auxiliary,)

    def require_one_position(self) -> None:
        """Raises NotApplicable where an answer is more than one row of numbers."""
        if self.extent is not None:
            raise NotApplicable(
                "it reads one row of numbers an answer, the model answers at "
                f"{math.prod(self.extent.positions)} positions"
            )

    @property
    def gives_values(self) -> bool:
        """Returns whether the model is a regression: labels are its targets."""
        return self.shield.chain.layout.kind == "values"

    def require_classes(self) -> None:
        """Raises NotApplicable where answers are no scores of classes, one row each."""
        self.require_one_position()
        if self.is_vector:
            kind = self.shield.chain.layout.kind
            raise NotApplicable(f"it reads scores of classes, the model gives {kind}")

    def require_answers_to_labels(self) -> None:
        """Raises NotApplicable where answers state no label and no target, as embeddings."""
        if not self.gives_values:
            self.require_classes()

    def labels(self, examples: Examples) -> Tensor:
        """Returns true labels, or raises NotApplicable where the examples have none.

        Shapes: -> (rows,) int64; the targets of a regression are (rows, outputs) float64.
        """
        self.require_one_position()
        if examples.labels is None:
            raise NotApplicable(f"it needs labels: pass {examples.name}=(inputs, labels)")
        if self.gives_values:
            return examples.require_targets(self.ask(self.nonmembers).distribution.shape[-1])
        return examples.require_labels(self.classes)

    def owned(self) -> Examples:
        """Returns the auxiliary data, or raises NotApplicable where there is none."""
        if self.auxiliary is None:
            raise NotApplicable("it needs auxiliary data: pass auxiliary=...")
        return self.auxiliary


def at_every_position(shield: Shield) -> Shield:
    """Returns a shield whose one answer is what many about the beginnings of a text release."""
    settings = replace(shield.settings, release_positions="all", extent=None)
    return Shield(shield.model, settings)


class ReadsFirst(nn.Module):
    """Asks a model by the first columns of a table; it does not read the others.

    width: how many columns it reads.
    """

    def __init__(self, asked: nn.Module, width: int) -> None:
        super().__init__()
        self.asked = asked
        self.width = width
        self.training = asked.training

    def forward(self, codes: Tensor) -> Tensor:
        """Shapes: (rows, columns) -> what the model answers about the first of them."""
        answers: Tensor = self.asked(codes[:, : self.width])
        return answers


def as_asked(shield: Shield, inputs: Tensor) -> Tensor:
    """Returns inputs as the model gets them: codes that stand for no table become the nearest.

    Shapes: (rows, ...) -> the same.
    """
    nearest = getattr(shield.model, "nearest_table_codes", None)
    return inputs if nearest is None else nearest(inputs)


def require_real_inputs(examples: Examples) -> None:
    """Raises NotApplicable where whole numbers are among the inputs: these have no gradient."""
    packing = examples.packing
    if packing is not None and packing.is_mixed:
        pairs = zip(packing.shown_names, packing.dtypes, strict=True)
        whole = ", ".join(name for name, dtype in pairs if not dtype.is_floating_point)
        raise NotApplicable(f"whole numbers among the inputs have no gradient: {whole}")
    if not examples.inputs.is_floating_point():
        raise NotApplicable(f"inputs of {examples.inputs.dtype} have no gradient")


@dataclass(frozen=True)
class Measurement(ABC):
    """What an audit runs: an attack, or a check.

    is_repeatable: whether the same game gives the same findings; else none is kept in a cache.
    at_positions: whether it reads answers at positions alone; elsewhere it is not run.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    needs_shadows: ClassVar[bool] = False
    is_repeatable: ClassVar[bool] = True
    at_positions: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, game: Game) -> Outcome:
        """Plays the game and returns findings with intervals."""


class Attack(Measurement):
    """What an adversary does. Called with a game, it returns what it found.

    metrics: what it may find; what it finds beside is refused. needs_shadows: whether it looks at
    the game's shadows. learns, searches: whether it learns inputs from answers, or asks about
    candidates until their answers fit; what is released has met one of each.
    Errors: NotApplicable, with the reason, where it does not fit the shield or the data.
    """

    learns: ClassVar[bool] = False
    searches: ClassVar[bool] = False

    def candidates_asked(self, form: Form, owned: int, targets: int) -> int:
        """Counts the candidates that it asks about, about, of one shield.

        form: what the records are. owned: how many the adversary has. targets: nonmembers.
        """
        return 0
