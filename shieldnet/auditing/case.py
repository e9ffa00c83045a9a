"""What an audit is given: checked once, before any attack."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shieldnet.attacks.base import in_batches
from shieldnet.core.checks import choice
from shieldnet.core.errors import ConfigError, DataError, ShieldnetError
from shieldnet.data.canaries import Planted
from shieldnet.data.duplicates import near_duplicates
from shieldnet.data.examples import (
    Canaries,
    Examples,
    Group,
    as_examples,
    require_disjoint,
    require_one_shape,
    row_bytes,
)
from shieldnet.data.hashing import state_hash, weights_hash
from shieldnet.findings.finding import Finding
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.reports.report import BARE
from shieldnet.reports.subject import Subject
from shieldnet.shield.module import Shield
from shieldnet.training.result import Finetuned

_MAX_GROUPS = 20  # of a grouping: more are no groups


def with_bare(shield: Shield | Mapping[str, Shield]) -> dict[str, Shield]:
    """Returns the undefended model by its name, and every shield by its own."""
    shields = {"shield": shield} if isinstance(shield, Shield) else shield
    named = isinstance(shields, Mapping) and all(
        isinstance(one, Shield) for one in shields.values()
    )
    if not (named and shields):
        is_model = isinstance(shield, nn.Module)
        fix = " Put one around it: shieldnet.harden(model)." if is_model else ""
        raise ConfigError(
            f"Expected a Shield, or a dict of Shields by name, got {type(shield).__name__}.{fix}"
        )
    first = next(iter(shields.values()))
    if any(one.model is not first.model for one in shields.values()):
        raise ConfigError("Expected shields around one model; audit another model by itself.")
    if BARE in shields:
        raise ConfigError(f"The name {BARE} is kept for the undefended model.")
    bare = {BARE: first.bare()}
    # The bare model audited alone is not measured twice; among others it keeps its name, so that
    # the gate sees it.
    alone = len(shields) == 1 and not first.chain.stages
    return bare if alone else bare | dict(shields)


def as_the_model_reads(sets: Mapping[str, Examples], model: nn.Module) -> dict[str, Examples]:
    """Returns sets of fractions in the float type of the model's weights, as ``finetune`` does."""
    kinds = [one.dtype for one in model.parameters() if one.is_floating_point()]
    own = getattr(model, "dtype", None) if not kinds else kinds[0]  # of an ONNX model, its input's
    if not (isinstance(own, torch.dtype) and own.is_floating_point):
        return dict(sets)
    return {
        name: replace(one, inputs=one.inputs.to(own)) if one.inputs.is_floating_point() else one
        for name, one in sets.items()
    }


def try_once(bare: Shield, examples: Examples) -> None:
    """Answers one row, so that a model that cannot read the data is told from a defect of ours."""
    try:
        in_batches(bare, examples.inputs[:1])
    except ShieldnetError:
        raise
    except Exception as unreadable:
        raise DataError(
            f"The model cannot read the {examples.name} ({examples.inputs.dtype}, shape "
            f"{tuple(examples.inputs.shape)}): {type(unreadable).__name__}: {unreadable}"
        ) from unreadable


def require_auditable(bare: Shield) -> None:
    """Raises ConfigError for answers of several positions, which no attack here reads."""
    kind = bare.chain.layout.kind
    _, positions = bare.sizes or (0, ())  # asked again with the first answer
    if math.prod(positions) > 1:
        raise ConfigError(
            f"An audit measures one row of numbers an answer, the model gives {kind} at "
            f"{math.prod(positions)} positions. Its certificate is proven all the same: "
            "shield.certificate()."
        )


def require_classes(bare: Shield, sets: Iterable[Examples]) -> None:
    """Raises DataError for labels that are no classes of the model, which has answered once."""
    if bare.chain.layout.kind in ("values", "embeddings"):
        return
    for examples in sets:
        if examples.labels is not None:
            examples.require_labels(bare.classes or 0)


def checked_sets(
    members: object, nonmembers: object, auxiliary: object, duplicates: str
) -> tuple[dict[str, Examples], dict[str, Tensor], dict[str, int]]:
    """Returns the sets by name, which of the rows given are in them, and how many were given.

    duplicates: ``"drop"`` takes what stands in two sets out of both.
    Errors: DataError where sets are missing, unlike, or overlap.
    """
    choice("duplicates", duplicates, ("refuse", "drop"))
    given = {"members": members, "nonmembers": nonmembers, "auxiliary": auxiliary}
    sets = {name: as_examples(value, name) for name, value in given.items() if value is not None}
    for name in ("members", "nonmembers"):
        if name not in sets:
            raise DataError(f"Expected {name} as (inputs, labels), got None.")
    counts = {name: len(one) for name, one in sets.items()}
    kept = {name: torch.arange(count) for name, count in counts.items()}
    pairs = [("members", "nonmembers"), ("auxiliary", "nonmembers"), ("auxiliary", "members")]
    pairs = [pair for pair in pairs if pair[0] in sets]
    if duplicates == "drop":
        for one, other in pairs:
            require_one_shape(sets[one], sets[other])
        kept = _in_one_set(sets, pairs)
        sets = {name: one.shuffled(kept[name]) for name, one in sets.items()}
    for one, other in pairs:
        require_disjoint(sets[one], sets[other])
        if duplicates == "drop":
            continue
        near = near_duplicates(sets[one].inputs, sets[other].inputs)
        if len(near):
            first = f"row {int(near[0, 1])} is nearly row {int(near[0, 0])}"
            raise DataError(
                f"{len(near)} of the {len(sets[other])} {other} are nearly {one} (first: {first}): "
                "a cast, a copy or a rounding is all that tells them apart. What is measured "
                "between overlapping sets means nothing. Take them out of both with "
                "duplicates='drop' (--duplicates drop), or divide the data anew with "
                "shieldnet.split."
            )
    return sets, kept, counts


def _in_one_set(
    sets: Mapping[str, Examples], pairs: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """Lists the rows of every set that stand in no other, nor nearly so."""
    content = {name: row_bytes(one) for name, one in sets.items()}
    times = Counter(row for rows in content.values() for row in set(rows))
    alone = {
        name: torch.tensor([times[row] == 1 for row in rows]) for name, rows in content.items()
    }
    for one, other in pairs:
        near = near_duplicates(sets[one].inputs, sets[other].inputs)
        alone[one][near[:, 0]] = False
        alone[other][near[:, 1]] = False
    for name, rows in alone.items():
        if not rows.any():
            raise DataError(f"Every one of the {len(rows)} {name} stands in another set too.")
    return {name: rows.nonzero().flatten() for name, rows in alone.items()}


def dropped(given: Mapping[str, int], kept: Mapping[str, Tensor]) -> list[str]:
    """Says in one line what was taken out of the sets. given: how many rows each had."""
    lost = {name: count - len(kept[name]) for name, count in given.items()}
    words = [f"{count} of the {given[name]} {name}" for name, count in lost.items() if count]
    why = "they stand in another set too, exactly or nearly, and were dropped"
    return [f"{', '.join(words)}: {why}"] if words else []


def column_names(columns: Sequence[str], inputs: Tensor) -> tuple[str, ...]:
    """Returns a name for every column of a table, none for anything else."""
    if inputs.dim() != 2:
        if columns:
            shape = tuple(inputs.shape)
            raise ConfigError(f"Only a table has columns; the inputs have shape {shape}.")
        return ()
    width = inputs.shape[1]
    if columns and len(columns) != width:
        raise ConfigError(f"Expected {width} column names, got {len(columns)}.")
    return tuple(columns) or tuple(f"column {place}" for place in range(width))


def canaries_of(given: object, sets: Mapping[str, Examples]) -> Canaries | None:
    """Returns canaries that are neither members nor nonmembers, or raises an error."""
    if given is None:
        return None
    canaries = given.canaries if isinstance(given, Planted) else given
    if not isinstance(canaries, Canaries):
        raise ConfigError(
            f"Expected canaries as plant_canaries returns them, got {type(given).__name__}."
        )
    for one in (canaries.planted, canaries.held_out):
        for name in ("members", "nonmembers"):
            require_disjoint(sets[name], one)
    return canaries


def claimed_by(finetuned: object, model: nn.Module) -> tuple[Guarantee | None, tuple[Finding, ...]]:
    """Returns what a training claims of its model, and what its own audit found.

    model: that is audited. A guarantee is about the model it was stated for.
    """
    if finetuned is None:
        return None, ()
    if isinstance(finetuned, Finetuned):
        claimed, found = finetuned.guarantee, finetuned.findings
    elif isinstance(finetuned, Guarantee):
        claimed, found = finetuned, ()
    else:
        raise ConfigError(
            f"Expected finetuned as finetune returns it, or a Guarantee; got "
            f"{type(finetuned).__name__}."
        )
    if claimed is not None and claimed.weights and not _is_about(claimed, model):
        raise ConfigError(
            "The guarantee is of other weights (or buffers, attributes, layers) than those of the "
            "model that is audited: nothing is proven of these. Audit the model that finetune "
            "returned, or that the same factory makes with the weights that it wrote."
        )
    return claimed, found


def _is_about(claimed: Guarantee, model: nn.Module) -> bool:
    if claimed.weights == weights_hash(model):
        return True
    # Trainings of version 1 had no run and hashed the state_dict alone.
    return not claimed.run and claimed.weights == state_hash(model)


def canary_sets(canaries: Canaries | None) -> tuple[Examples, ...]:
    """Lists the sets of canaries, none where there are none."""
    return () if canaries is None else (canaries.planted, canaries.held_out)


def groups_of(
    given: Mapping[str, tuple[object, object]] | None,
    counts: Mapping[str, int],
    kept: Mapping[str, Tensor],
) -> tuple[Group, ...]:
    """Makes a group of every value of every grouping, of the rows that were kept.

    counts: of the rows that were given of every set.
    """
    groups: list[Group] = []
    for name, pair in (given or {}).items():
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise ConfigError(
                f"Expected groups as {{name: (of the members, of the nonmembers)}}, got {name!r}: "
                f"{type(pair).__name__}."
            )
        values = [np.asarray(one) for one in pair]
        for part, role in zip(values, ("members", "nonmembers"), strict=True):
            if part.shape != (counts[role],):
                raise DataError(
                    f"Expected the group {name} of the {role} as {counts[role]} values, got "
                    f"shape {part.shape}."
                )
        roles = ("members", "nonmembers")
        values = [part[kept[role].numpy()] for part, role in zip(values, roles, strict=True)]
        try:
            every = np.unique(np.concatenate(values))
        except TypeError as mixed:
            raise DataError(
                f"Expected the group {name} as values of one kind, none of them missing: {mixed}."
            ) from mixed
        if len(every) > _MAX_GROUPS:
            raise DataError(
                f"Expected at most {_MAX_GROUPS} values of the group {name}, got {len(every)}."
            )
        groups += [
            Group(f"{name} = {_named(value)}", *(_equal(part, value) for part in values))
            for value in every.tolist()
        ]
    return tuple(groups)


def _named(value: object) -> str:
    return "missing" if value != value else str(value)


def _equal(values: NDArray[Any], value: object) -> Tensor:
    """Says which values are this one; what is missing (NaN) equals what is missing, too."""
    same = values != values if value != value else values == value
    return torch.from_numpy(np.asarray(same))


def shuffled(
    sets: Mapping[str, Examples], groups: tuple[Group, ...], kept: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, Examples], tuple[Group, ...], dict[str, Tensor]]:
    """Puts every set into a random order, groups with it; returns the rows as given, too.

    Attacks that cannot afford all rows take the first: of data sorted by class, or by anything
    else, these would be of one kind, and a leak or a safety would be seen that is none.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = {name: torch.randperm(len(one), generator=generator) for name, one in sets.items()}
    moved = tuple(
        Group(one.name, one.members[orders["members"]], one.nonmembers[orders["nonmembers"]])
        for one in groups
    )
    places = {name: kept[name][order] for name, order in orders.items()}
    return {name: one.shuffled(orders[name]) for name, one in sets.items()}, moved, places


def as_given(subject: Subject, orders: Mapping[str, Tensor]) -> Subject:
    """Names exposed records by their places in the sets as they were given, before ``shuffled``."""
    exposed = tuple(
        replace(one, rows=tuple(orders[one.role][list(one.rows)].tolist()))
        for one in subject.exposed
    )
    return replace(subject, exposed=exposed)
