"""The game that every attack plays: it may ask the shield, and owns auxiliary data."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from shieldnet.attacks.shadow_answers import PositionShadows, Shadows
from shieldnet.core.randomness import noise_about
from shieldnet.data.beside import Beside
from shieldnet.data.examples import Canaries, Examples, Group
from shieldnet.defenses.named import dense
from shieldnet.findings.finding import Finding, NotApplicable, Outcome
from shieldnet.findings.metrics import Metric
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent

_Made = TypeVar("_Made")
_BATCH = 1024
MAX_QUERIES = 256
"""Queries about the same row by an adversary in no hurry."""


@dataclass(frozen=True)
class Answers:
    """Holds what the shield released about some rows, averaged over the queries.

    Shapes: distribution (rows, classes) that sums to 1, or the numbers themselves of values and
    embeddings; logits (rows, classes) where the shield releases scores that say more than their
    softmax, else None; mean_log, the mean of log p, where several answers were averaged.
    """

    distribution: Tensor
    logits: Tensor | None = None
    mean_log: Tensor | None = None

    def first(self, rows: int) -> "Answers":
        """Keeps the first rows."""
        return self.at(torch.arange(min(rows, len(self.distribution))))

    def at(self, rows: Tensor) -> "Answers":
        """Keeps the rows of these numbers."""
        parts = (self.distribution, self.logits, self.mean_log)
        return Answers(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]  # the distribution is never None


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
        """Returns the game about another shield of the same model; the base gets its defenses."""
        base = None if self.base is None else shield.with_model(self.base.model)
        return replace(self, shield=shield, base=base)

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
                self._kept[key] = _ask(self.shield, examples.inputs, queries)
        return self._kept[key]

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

    def require_classes(self) -> None:
        """Raises NotApplicable where answers are no scores of classes, one row each."""
        self.require_one_position()
        if self.is_vector:
            kind = self.shield.chain.layout.kind
            raise NotApplicable(f"it reads scores of classes, the model gives {kind}")

    def labels(self, examples: Examples) -> Tensor:
        """Returns true labels, or raises NotApplicable where the examples have none."""
        self.require_one_position()
        if examples.labels is None:
            raise NotApplicable(f"it needs labels: pass {examples.name}=(inputs, labels)")
        return examples.require_labels(self.classes)

    def owned(self) -> Examples:
        """Returns the auxiliary data, or raises NotApplicable where there is none."""
        if self.auxiliary is None:
            raise NotApplicable("it needs auxiliary data: pass auxiliary=...")
        return self.auxiliary


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


class Behind(nn.Module):
    """The model behind a shield: its true scores as rows, with their graph.

    The model gets a copy of the inputs, which it may write into.
    """

    def __init__(self, shield: Shield) -> None:
        super().__init__()
        self.shield = shield

    def forward(self, inputs: Tensor) -> Tensor:
        """Shapes: inputs -> (rows, classes) logits, or probabilities where the model gives them."""
        scores = self.shield.answer_in(self.shield.model(inputs.clone()))
        return one_row_each(self.shield.chain.layout.opened(scores))


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


def one_row_each(rows: Tensor) -> Tensor:
    """Drops positions of size one; a number a row becomes a column.

    Shapes: (n, 1, ..., 1, classes) -> (n, classes), (n,) -> (n, 1).
    """
    return rows.reshape(len(rows), 1 if rows.dim() == 1 else rows.shape[-1])


@dataclass(frozen=True)
class Measurement(ABC):
    """What an audit runs: an attack, or a check.

    is_repeatable: whether the same game gives the same findings; else none is kept in a cache.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    needs_shadows: ClassVar[bool] = False
    is_repeatable: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, game: Game) -> Outcome:
        """Plays the game and returns findings with intervals."""


class Attack(Measurement):
    """What an adversary does. Called with a game, it returns what it found.

    metrics: what it may find; what it finds beside is refused. needs_shadows: whether it looks at
    the game's shadows.
    Errors: NotApplicable, with the reason, where it does not fit the shield or the data.
    """


def in_batches(module: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Runs a module over all rows, on its own device, without a graph.

    The module gets copies of the rows, which it may write into.
    Shapes: inputs (rows, ...) -> what the module gives, on the CPU.
    """
    parameters = getattr(module, "parameters", None)
    first = next(parameters(), None) if parameters else None
    device = inputs.device if first is None else first.device
    with torch.no_grad():
        answers = (module(part.to(device, copy=True)) for part in inputs.split(_BATCH))
        pick = module.answer_in if isinstance(module, Shield) else _same
        parts = [pick(answer).cpu() for answer in answers]
    return torch.cat(parts)


def _same(answers: Tensor) -> Tensor:
    return answers


def vector_views(numbers: Tensor) -> dict[str, Tensor]:
    """Lists the readings of released values or embeddings. Shapes: (n, d) -> each (n, d)."""
    length = numbers.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    views = {"numbers": numbers}
    return views if numbers.shape[-1] == 1 else {**views, "direction": numbers / length}


def defended(shield: Shield, scores: Tensor, inputs: Tensor, queries: int = 1) -> Answers:
    """Passes true scores, of this model or of another, through the shield's defenses.

    inputs: what the scores are about, for noise that is keyed on them.
    Shapes: scores (rows, classes).
    """
    chain = shield.chain
    places = 1 if chain.layout.axis is None else max(1, abs(chain.layout.axis))
    rows = scores.reshape(len(scores), *[1] * (places - 1), scores.shape[-1])

    def ask() -> Tensor:
        answers = dense(chain.defended(rows, (inputs,)))
        return chain.layout.closed(answers, rows.shape, chain.release)

    with torch.no_grad():
        return _averaged(shield, ask, queries, scores.shape[-1])


def _ask(shield: Shield, inputs: Tensor, queries: int) -> Answers:
    return _averaged(shield, lambda: in_batches(shield, inputs), queries)


def _averaged(
    shield: Shield, ask: Callable[[], Tensor], queries: int, classes: int | None = None
) -> Answers:
    """Asks ``queries`` times and takes the mean of every part of the answers."""
    chain = shield.chain
    is_vector = chain.layout.kind in ("values", "embeddings")
    sums: list[Tensor] = []
    for _ in range(queries):
        answers = ask()
        if is_vector:
            parts = [one_row_each(chain.rows(answers)).float()]
        else:
            stated = one_row_each(chain.distribution(answers, classes or shield.classes or 0))
            parts = [stated]
            if queries > 1:
                parts.append(stated.clamp_min(1e-30).log())
            if chain.releases_scores:
                parts.append(one_row_each(chain.rows(answers)))
        sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else parts
    means = [total / queries for total in sums]
    return Answers(
        means[0],
        logits=means[-1] if chain.releases_scores else None,
        mean_log=means[1] if queries > 1 and not is_vector else None,
    )
