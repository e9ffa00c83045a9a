"""Presets of embeddings and values: their range and step come from what is public."""

from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from types import MappingProxyType
from typing import Any

from torch import Tensor

from shieldnet.core.checks import choice
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.defenses import (
    ClipNorm,
    ClipRange,
    Defense,
    GaussianNoise,
    LaplaceNoise,
    RoundTo,
    Sign,
)
from shieldnet.outputs.layout import Kind
from shieldnet.shield.module import Shield
from shieldnet.shield.public_rows import answers_about

CALIBRATED: tuple[Kind, ...] = ("embeddings", "values")
"""Kinds whose presets need public rows."""
_MIN_ROWS = 100
_CUT = 0.005  # of the public values on each side
_LONG = 0.99  # of the public embeddings are no longer than the bound
_AT_ONCE = 256
_MOST_UNLIKE = 10.0  # the range of all outputs of one regression, in widths of the narrowest
_DIGITS = 3  # of the width of a range
_ROUNDING = 1e-6  # a vector of length 1 may be this much longer
_STEPS: Mapping[str, int] = MappingProxyType({"strict": 4, "balanced": 16, "open": 64})
_EPSILON = 6.0  # of "certified", as of the preset of classes
PRESETS_OF_VECTORS = ("strict", "balanced", "open", "certified")
_Chains = Callable[[str, Tensor], tuple[Defense, ...]]


def calibrated(model: Any, preset: str, public_rows: Any, **layout: Any) -> tuple[Defense, ...]:
    """Returns the defenses of a preset, with numbers measured on answers about public rows.

    Embeddings are clipped to the norm that 99% of the public ones keep to. strict: noise as long as
    the vector, then signs. balanced: signs. open: numbers in steps of their own deviation.
    certified: noise for mu = 6. Values are clipped to the range of 99% of the public ones. strict,
    balanced, open: 4, 16, 64 steps of it. certified: noise for (6, 0)-differential privacy.
    public_rows: inputs as the model takes them, 100 at least: a tensor, an array, a tuple of
    arguments or a dict of named ones. They must not be private: the settings tell of them.
    Errors: ConfigError for another kind, or for what has no rows; DataError for rows that are too
        few or that the model cannot answer, or answers that do not vary; AnswerError for answers
        that are random or not finite.
    """
    kind = layout.get("outputs")
    if not isinstance(kind, str) or kind not in CALIBRATED:
        raise ConfigError(
            f"Expected calibrate= with outputs='embeddings' or outputs='values', got "
            f"outputs={kind!r}: the presets of classes need no range."
        )
    choice("preset", preset, PRESETS_OF_VECTORS)
    bare = Shield(model, micro_batch=_AT_ONCE, **layout)
    released = answers_about(public_rows, bare)
    rows = bare.chain.layout.opened(released).double().flatten(0, -2)
    if len(released) < _MIN_ROWS:
        raise DataError(
            f"Expected at least {_MIN_ROWS} public rows to measure a range on, got {len(released)}."
        )
    if not bool((rows.amax(0) > rows.amin(0)).any()):
        raise DataError(
            f"The model gives the same {kind} for all {len(released)} public rows: no range can be "
            "measured on them. Pass rows that differ."
        )
    return _of_embeddings(preset, rows) if kind == "embeddings" else _of_values(preset, rows)


def _of_embeddings(preset: str, rows: Tensor) -> tuple[Defense, ...]:
    longest = float(_ends(rows.norm(dim=1), 1 - _LONG)[1])
    if longest == 0:
        raise DataError(
            f"The model's embeddings of {_LONG:.0%} of the {len(rows)} public rows are zeros: no "
            "range can be measured on them. Pass rows of which most have an embedding."
        )
    bound = _rounded(longest * (1 - _ROUNDING), longest, up=True)
    if preset == "balanced":
        return (Sign(),)
    if preset == "open":
        deviation = rows.std(0).square().mean().sqrt()
        return (ClipNorm(bound), RoundTo(_short(float(deviation), digits=1)))
    if preset == "certified":
        return (ClipNorm(bound), GaussianNoise(2 * bound / _EPSILON))
    scale = _short(bound / rows.shape[1] ** 0.5, digits=1)
    return (ClipNorm(bound), GaussianNoise(scale), Sign())


def _of_values(preset: str, rows: Tensor) -> tuple[Defense, ...]:
    low, high = _ends(rows, _CUT)
    width, narrowest = float(high.max() - low.min()), float((high - low).min())
    if width == 0:
        raise DataError(
            f"The model gives the same values for nearly all {len(rows)} public rows: no range can "
            "be measured on them. Pass rows that differ."
        )
    if width > _MOST_UNLIKE * narrowest:
        raise DataError(
            f"The model's {rows.shape[1]} values differ in range by more than {_MOST_UNLIKE:g} "
            "times, and one step would fit none of them. Return them as fields of a dict, each "
            "with also=(sn.ClipRange(low, high), sn.RoundTo(step)), or scale them first."
        )
    least = _rounded(float(low.min()), width, up=False)
    most = _rounded(float(high.max()), width, up=True)
    clip = ClipRange(least, most)
    if preset == "certified":
        return (clip, LaplaceNoise((most - least) * rows.shape[1] / _EPSILON))
    return (clip, RoundTo(_short((most - least) / _STEPS[preset], digits=2)))


def _ends(rows: Tensor, cut: float) -> tuple[Tensor, Tensor]:
    """Returns what at most a share of ``cut`` is below, and above. Shapes: (rows, ...) -> (...)."""
    beyond = int(cut * len(rows))
    return rows.kthvalue(beyond + 1, 0).values, rows.kthvalue(len(rows) - beyond, 0).values


def _rounded(number: float, width: float, *, up: bool) -> float:
    """Rounds a measured end of a range outward, to a unit of three digits of the range's width."""
    unit = Decimal(1).scaleb(Decimal(width).adjusted() - _DIGITS + 1)
    rounding = ROUND_CEILING if up else ROUND_FLOOR
    return float((Decimal(number) / unit).to_integral_value(rounding) * unit)


def _short(number: float, digits: int) -> float:
    """Rounds a measured number to few digits: more of them say nothing of what is public."""
    return float(f"{number:.{digits - 1}e}")
