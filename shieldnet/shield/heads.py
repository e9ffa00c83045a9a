"""Models of several heads: a preset before each, and the lines that messages name.

What a message says is a call that runs: tests take it from there and run it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from shieldnet.defenses import Defense
from shieldnet.outputs.layout import ROW_KINDS, Kind
from shieldnet.outputs.mistaken import EMBEDDING_NAMES, looks_like_probabilities, noise_beside
from shieldnet.outputs.nested import Path, written
from shieldnet.shield.preset_chains import PRESETS
from shieldnet.shield.settings import ShieldSettings, named_by
from shieldnet.shield.written_out import example_for, in_code, named

CLASS_KINDS: tuple[Kind, ...] = ("logits", "probabilities", *ROW_KINDS)
"""Kinds of what a preset stands before: scores of classes, or of yes and no."""

Also = Mapping[str, Sequence[Defense]]
Axis = int | Mapping[str, int] | None


def before_each_head(
    preset: tuple[Defense, ...],
    outputs: Kind | Mapping[str, Kind] | None,
    axis: Axis,
    also: Also | None,
    drop: Sequence[str] | None,
) -> tuple[Axis, Also]:
    """Returns the axes and the other fields' defenses: the preset for each head of classes.

    Heads are the fields that ``outputs`` names, beside the first. One whose defenses are given, or
    that is dropped, is left as it is; so are values and embeddings, which need a range or a bound.
    An axis that is one number is that of every head.
    """
    given = {} if also is None else also
    if not isinstance(outputs, Mapping) or not isinstance(given, Mapping):
        return axis, given
    dropped = (drop,) if isinstance(drop, str) else drop or ()
    heads = [
        name
        for name, kind in list(outputs.items())[1:]
        if kind in CLASS_KINDS and name not in given and name not in dropped
    ]
    if heads and isinstance(axis, int):
        axis = dict.fromkeys([next(iter(outputs)), *heads], axis)
    return axis, {**given, **dict.fromkeys(heads, preset)}


def line_for_fields(
    fields: Mapping[Path, Any], settings: ShieldSettings, main: Path | None = None
) -> str | None:
    """Returns the call that answers each head of what a model returned; None where there is none.

    Heads are tensors of (rows, classes) whose names are not those of embeddings. What has defenses
    already, or is released as it is, keeps that; the rest is dropped.
    main: where the answer is, once it is found; embeddings and values beside it get examples.
    """
    there = {  # a misspelled name is in no field, and in no line
        name
        for name in (*settings.others, *settings.drop)
        if any(named_by(path, (name,)) for path in fields)
    }
    kept = {
        name: chain.defenses if chain else ()
        for name, chain in settings.others.items()
        if name in there
    }
    dropped = tuple(name for name in settings.drop if name in there)
    kinds: dict[str, Kind] = {}
    for path, leaf in fields.items():
        if not named_by(path, (*kept, *dropped)):
            kind = _kind_of(path, leaf, settings) or (main and _kind_beside(path, leaf))
            kinds |= {written(path): kind} if kind else {}
    if main is not None:
        kinds = {written(main): settings.chain.layout.kind} | kinds
    if not kinds:
        return None
    covered = (*kinds, *kept, *dropped)
    left = {path[0]: None for path in fields if not named_by(path, covered)}
    others = {
        name: chain.layout.kind
        for name, chain in settings.others.items()
        if chain and name in there
    }
    line = _Line(settings, kinds | others, (*dropped, *left))
    return line.written(kept)


def line_for_embeddings(
    path: Path, fields: Iterable[Path], output: Tensor, settings: ShieldSettings
) -> str:
    """Returns the call that takes a field, or the only tensor, as embeddings."""
    name = written(path)
    others = {other[0]: None for other in fields if other != path}
    outputs = f"{{{name!r}: 'embeddings'}}" if others else "'embeddings'"
    axis = ", axis=-1" if output.dim() > 2 else ""
    drop = f", drop={tuple(others)!r}" if others else ""
    noise = f"sn.GaussianNoise({noise_beside(output.shape[-1])})"
    return f"sn.Shield(model, sn.ClipNorm(1.0), {noise}, outputs={outputs}{axis}{drop})"


class _Line(NamedTuple):
    """A call of ``harden`` or ``Shield``, in the making."""

    settings: ShieldSettings
    kinds: Mapping[str, Kind]
    drop: tuple[str, ...]

    def written(self, kept: Mapping[str, Sequence[Defense]]) -> str:
        settings = self.settings
        _, *heads = self.kinds
        preset = next((name for name, chain in PRESETS.items() if chain == settings.defenses), None)
        also = {
            name: in_code(defenses)
            for name, defenses in kept.items()
            if not (preset and defenses == settings.defenses and self.kinds[name] in CLASS_KINDS)
        }
        for name in heads:
            if name not in also and (preset is None or self.kinds[name] not in CLASS_KINDS):
                also[name] = example_for(self.kinds[name], settings.defenses)
        parts = [] if preset in ("balanced", None) else [repr(preset)]
        parts += [named(defense) for defense in settings.defenses] if preset is None else []
        parts.append(f"outputs={dict(self.kinds)!r}")
        for name in ("release", "axis", "micro_batch"):
            if (value := getattr(settings, name)) is not None:
                parts.append(f"{name}={value!r}")
        if settings.release_positions != "all":
            parts.append(f"release_positions={settings.release_positions!r}")
        if also:
            listed = ", ".join(f"{name!r}: {code}" for name, code in also.items())
            parts.append(f"also={{{listed}}}")
        if self.drop:
            parts.append(f"drop={self.drop!r}")
        call = "sn.Shield" if preset is None else "sn.harden"
        return f"{call}(model, {', '.join(parts)})"


def _kind_of(path: Path, leaf: Any, settings: ShieldSettings) -> Kind | None:
    """Guesses the kind of a head; None for what is none."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return None
    if path[-1:] and path[-1] in EMBEDDING_NAMES:
        return None
    kind = settings.chain.layout.kind
    if leaf.dim() != 2 or leaf.shape[1] < 2 or kind not in CLASS_KINDS:
        return None
    if kind == "logits" and looks_like_probabilities(leaf):
        return "probabilities"
    return kind


def _kind_beside(path: Path, leaf: Any) -> Kind | None:
    """Guesses the kind of what is no head; None for what can be left out only."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return None
    if path[-1] in EMBEDDING_NAMES:
        return "embeddings" if leaf.dim() == 2 else None
    return "values" if leaf.dim() == 1 else None
