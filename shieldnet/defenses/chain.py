"""Chains of defenses, with the conversions between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shieldnet.core.checks import choice
from shieldnet.core.errors import ConfigError
from shieldnet.core.opaque_ops import is_captured, lowered_checks
from shieldnet.defenses.base import UNBOUNDED, Defense, readings
from shieldnet.defenses.conversions import Center, Log, Softmax
from shieldnet.defenses.labels import Argmax
from shieldnet.defenses.named import Named, all_on, dense
from shieldnet.outputs.layout import MODEL_KINDS, ROW_KINDS, Kind, Layout, Positions, require_finite
from shieldnet.privacy.cost import PrivacyCost

_RELEASES: dict[Kind, tuple[Kind, ...]] = {
    "logits": ("logits", "probabilities", "labels"),
    "probabilities": ("logits", "probabilities", "labels"),
    "values": ("values", "integers"),
    "embeddings": ("embeddings", "integers"),
}


@dataclass(frozen=True)
class Chain:
    """Turns one output of a model into the released answers.

    stages: defenses and inserted conversions, in order. defenses: those that the user named.
    layout: of the output. release: kind of the released answers. overflowing: for each stage, the
    stage whose NaN and Inf are checked after it, or None.
    """

    stages: tuple[Defense, ...]
    defenses: tuple[Defense, ...]
    layout: Layout
    release: Kind
    overflowing: tuple[Defense | None, ...]

    @classmethod
    def of(
        cls,
        defenses: tuple[Defense, ...],
        outputs: Kind,
        release: Kind | None = None,
        axis: int | None = None,
        positions: Positions = "all",
    ) -> "Chain":
        """Links defenses from kind to kind; raises ConfigError with the fix if they do not fit."""
        choice("outputs", outputs, MODEL_KINDS)
        layout = Layout(outputs, axis, positions)
        kind = layout.row_kind
        wanted = kind if release is None else ROW_KINDS.get(release, release)
        integers = any(
            isinstance(defense, Defense) and defense.gives_integers for defense in defenses
        )
        if release is None and integers:
            wanted = "integers"
        allowed = _RELEASES[kind] + (("integers",) if integers else ())
        choice("release", wanted, tuple(dict.fromkeys(allowed)))
        stages = _linked(defenses, kind, wanted)
        return cls(stages, tuple(defenses), layout, wanted, _overflowing(stages))

    def __call__(
        self,
        output: object,
        inputs: tuple[Tensor, ...] = (),
        noise: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Defends one output. Shapes: as the model's; labels have no class axis.

        inputs: the model's inputs, for noise that depends on them. noise: of every stage, as
        ``draw`` returns it; by default it is drawn here.
        """
        return self._closed(self.layout.opened(output), output, inputs, noise)

    def again(self, output: Tensor) -> Tensor:
        """Defends an output of a form that was checked before: only its values are checked."""
        return self._closed(self.layout.rows_of(output), output)

    def _closed(
        self,
        rows: Tensor,
        output: object,
        inputs: tuple[Tensor, ...] = (),
        noise: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        shape = output.shape if isinstance(output, Tensor) else rows.shape
        # In one order of memory, whatever the model's: strides are an answer too.
        defended = own(dense(self.defended(rows, inputs, noise)).contiguous(), output)
        closed = self.layout.closed(defended, shape, self.release)
        return closed if closed is defended else own(closed)

    def draw(self, shape: torch.Size) -> tuple[Tensor | None, ...]:
        """Draws the noise of every stage for rows of this shape (..., classes), on the CPU."""
        return tuple(stage.draw(shape) for stage in self.stages)

    def defended(
        self,
        rows: Tensor,
        inputs: tuple[Tensor, ...] = (),
        noise: Sequence[Tensor | None] | None = None,
    ) -> Tensor | Named:
        """Applies the stages to rows. Shapes: (..., classes) -> the same, or ``Named``."""
        answers: Tensor | Named = rows
        for number, stage in enumerate(self.stages):
            draws = None if noise is None else noise[number]
            if draws is not None:
                answers = stage.compact_with(answers, draws)
            elif stage.reads_inputs:
                answers = stage.with_inputs(dense(answers), inputs)
            else:
                answers = stage.compact(answers)
            if (first := self.overflowing[number]) is not None:
                answers = require_finite(dense(answers), first)
        return answers

    def rows(self, answers: Tensor) -> Tensor:
        """Reads released scores or probabilities as rows. Shapes: -> (N, *positions, classes)."""
        if self.release == "integers":
            answers = answers * self.stages[-1].grid
        if self.layout.kind in ROW_KINDS:
            no = 1 - answers if self.release == "probabilities" else torch.zeros_like(answers)
            return torch.stack([no, answers], -1)
        return answers if self.layout.axis is None else answers.movedim(self.layout.axis, -1)

    def distribution(self, answers: Tensor, classes: int) -> Tensor:
        """Reads released answers as distributions. Shapes: -> (N, *positions, classes)."""
        if self.layout.kind in ("values", "embeddings"):
            raise ConfigError(f"{self.layout.kind} are no distribution.")
        if self.release == "labels":
            return all_on(answers.unsqueeze(-1), classes, torch.float32).dense()
        rows = self.rows(answers)
        return rows if self.release == "probabilities" else rows.softmax(-1)

    @property
    def releases_logits(self) -> bool:
        """Returns whether scores of classes are released, as floats or as integers."""
        return self.layout.row_kind == "logits" and self.release in ("logits", "integers")

    def views(self, probabilities: Tensor, logits: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the readings of a distribution that an adversary who knows the chain tries."""
        views = readings(probabilities)
        for stage in self.stages:
            views |= stage.adversary_view(probabilities)
        return views if logits is None else {**views, "logits": logits}

    @cached_property
    def reads_inputs(self) -> bool:
        """Returns whether a stage needs the model's inputs."""
        return any(stage.reads_inputs for stage in self.stages)

    @property
    def releases_scores(self) -> bool:
        """Returns whether released logits contain more than their softmax."""
        return self.releases_logits and not (self.stages and isinstance(self.stages[-1], Log))

    @property
    def deterministic(self) -> bool:
        """Returns whether the same input always gets the same answer."""
        return all(stage.deterministic for stage in self.stages)

    def cost(self, classes: int, positions: tuple[int, ...] = ()) -> PrivacyCost:
        """Returns the privacy cost of one answer with these positions: of its cheapest stage."""
        cost, reach = PrivacyCost(), UNBOUNDED
        distinct = positions
        for stage in self.stages:
            if (coarser := stage.distinct(positions)) != positions:
                distinct = coarser
            if stage.reads_inputs or not stage.deterministic:
                distinct = positions  # fresh noise makes equal positions differ again
            alone = stage.cost(classes, reach) * math.prod(distinct)
            # What reads the inputs again is computed from more than what was counted before.
            cost = alone if stage.reads_inputs else cost.capped(alone)
            reach = stage.reach(classes, reach)
        return cost

    def __str__(self) -> str:
        return " -> ".join(
            f"[{stage}]" if stage.conversion else str(stage) for stage in self.stages
        )


def own(answers: Tensor, output: object = None) -> Tensor:
    """Copies a tensor that is a view of a larger one, or that shares the memory of ``output``.

    A view would release more than it shows. And a released tensor must share no memory with the
    caller's input, a weight or another field, all of which a model's output may be.
    """
    if lowered_checks() is not None:  # a graph gives what it computes
        return answers
    if is_captured():  # who owns what is not known yet
        return answers.clone(memory_format=torch.contiguous_format)
    storage = answers.untyped_storage()
    is_more = storage.nbytes() > answers.numel() * answers.element_size()
    if is_more or (
        isinstance(output, Tensor) and storage.data_ptr() == output.untyped_storage().data_ptr()
    ):
        return answers.clone(memory_format=torch.contiguous_format)
    return answers


def _linked(defenses: tuple[Defense, ...], kind: Kind, release: Kind) -> tuple[Defense, ...]:
    chain: list[Defense] = []
    for defense in defenses:
        if not isinstance(defense, Defense):
            raise ConfigError(_no_defense(defense))
        for earlier in chain:
            if reason := defense.not_after.get(type(earlier).__name__):
                raise ConfigError(f"Put {defense} before {earlier}: {reason}.")
        if kind not in defense.accepts and kind == "logits" and "probabilities" in defense.accepts:
            chain.append(Softmax())
            kind = "probabilities"
        elif kind not in defense.accepts:
            raise ConfigError(_misfit(defense, chain, kind))
        elif kind == "logits" and defense.centered:
            chain.append(Center())
        chain.append(defense)
        kind = defense.given(kind)
    conversions: dict[Kind, Defense] = {
        "logits": Log(),
        "probabilities": Softmax(),
        "labels": Argmax(),
    }
    if kind != release:
        if release not in conversions or kind not in ("logits", "probabilities"):
            raise ConfigError(f"The defenses give {kind}, which cannot be released as {release}.")
        chain.append(conversions[release])
    return tuple(chain)


def _is_ours(stage: Defense) -> bool:
    """Returns whether a stage is ours: the contract test covers its claims on NaN and Inf."""
    return type(stage).__module__.startswith(f"{__package__}.")


def _overflowing(stages: tuple[Defense, ...]) -> tuple[Defense | None, ...]:
    looked_for: list[Defense | None] = []
    first: Defense | None = None
    for number, stage in enumerate(stages):
        if first is None and (stage.may_overflow or not _is_ours(stage)):
            first = stage
        is_kept = number + 1 < len(stages) and stages[number + 1].keeps_nan
        looked_for.append(None if is_kept else first)
        first = first if is_kept else None
    return tuple(looked_for)


def _no_defense(value: object) -> str:
    fix = ""
    if isinstance(value, list | tuple):
        fix = " Give them one by one: Shield(model, TopK(3), Round(1))."
    elif isinstance(value, type):
        fix = f" Give it its settings: {value.__name__}(...)."
    return f"Expected a defense such as Round(2), got {value!r}.{fix}"


def _misfit(defense: Defense, chain: list[Defense], kind: Kind) -> str:
    """Returns why a defense does not fit, and what to do."""
    source = f"{chain[-1]} gives" if chain else "the model's outputs are"
    named = [stage for stage in chain if not stage.conversion]
    if kind in ("values", "embeddings"):
        fix = f"For {kind} use ClipRange, ClipNorm, RoundTo, GaussianNoise or LaplaceNoise."
    elif kind == "integers":
        fix = f"Release the integers as they are, or set integers=False in {named[-1]}."
    elif named:
        fix = f"Put {defense} before {named[0]}."
    elif {"values", "embeddings"} & set(defense.accepts) and "logits" not in defense.accepts:
        fix = "For classes use Round, TopK, Confidence or Label."
    else:
        fix = "Wrap the model so that it returns its logits."
    return f"{defense} reads {' or '.join(defense.accepts)}, but {source} {kind}. {fix}"
