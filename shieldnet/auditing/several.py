"""Audits of models of several inputs: attacks move rows of numbers, the model is asked by its own.

Every record is one row (``Packing``). Where whole numbers stand beside real ones, rows are float64,
which holds both exactly, and what an attack moves is rounded before the model is asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.attacks.membership.shadows import Train
from shieldnet.auditing.tables import Given, TableModel
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.data.canaries import Planted
from shieldnet.data.examples import Canaries, Examples, as_examples, require_one_shape
from shieldnet.data.loaders import of_loader
from shieldnet.data.packing import Packing, packed, several_of
from shieldnet.outputs.estimators import Estimator
from shieldnet.training.recipe import Recipe


class PackedModel(nn.Module):
    """Answers rows: takes the inputs apart, each in its own type, and asks the model by them.

    low, high: the least and greatest whole numbers of the records; an attack that moves a row
    asks about the nearest ones. None where rows hold no whole numbers beside real ones.
    Shapes: low and high (numbers,).
    """

    def __init__(
        self, asked: nn.Module, packing: Packing, low: Tensor | None, high: Tensor | None
    ) -> None:
        super().__init__()
        self.asked = asked
        self.packing = packing
        self.low, self.high = low, high
        self.training = asked.training

    def forward(self, rows: Tensor) -> Any:
        """Shapes: (records, numbers) -> what the model answers."""
        inputs = self.packing.inputs(self.nearest_table_codes(rows))
        return self.asked(**inputs) if isinstance(inputs, dict) else self.asked(*inputs)

    def nearest_table_codes(self, codes: Tensor) -> Tensor:
        """Returns rows with whole numbers where the model reads such. Shapes: (rows, numbers)."""
        if self.low is None or self.high is None:
            return codes
        nearest = codes.round().clamp(self.low.to(codes), self.high.to(codes))
        whole = nearest.new_tensor(self.packing.is_whole, dtype=torch.bool)
        return nearest.where(whole, codes)


@dataclass(frozen=True)
class Packed:
    """Makes a model that takes rows of one that takes several inputs.

    Shapes: low and high (numbers,), as in ``PackedModel``.
    """

    packing: Packing
    low: Tensor | None
    high: Tensor | None

    @classmethod
    def of(cls, packing: Packing, sets: Mapping[str, Examples]) -> "Packed":
        """Looks for the least and greatest numbers of all sets."""
        if not packing.is_mixed:
            return cls(packing, None, None)
        ends = [torch.stack(part.inputs.aminmax(dim=0)) for part in sets.values()]
        return cls(
            packing,
            torch.stack([low for low, _ in ends]).amin(0),
            torch.stack([high for _, high in ends]).amax(0),
        )

    def __call__(self, model: nn.Module) -> PackedModel:
        """Puts a model behind rows."""
        return PackedModel(model, self.packing, self.low, self.high)


@dataclass(frozen=True)
class MakePacked:
    """Makes a recipe's fresh model, which then takes rows."""

    make_model: Any
    packed: Packed

    def __call__(self) -> Any:
        made = self.make_model()
        return self.packed(made) if isinstance(made, nn.Module) else made


@dataclass(frozen=True)
class TrainOnInputs:
    """Trains as the user's function does: on several inputs in their own form."""

    train: Train
    packed: Packed

    def __call__(self, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        rows, labels = data
        trained: Any = self.train((self.packed.packing.inputs(rows), labels), seed)  # type: ignore[arg-type]  # the user's own form
        if not isinstance(trained, nn.Module):
            return trained  # type: ignore[no-any-return]  # refused where it is called
        return self.packed(trained)


def as_rows(given: Given, canaries: Any) -> tuple[Given, Any]:
    """Packs several inputs of every set into rows, and has the shields' model take rows.

    Errors: DataError for sets of different inputs, and for an estimator, which reads one table.
    """
    sets = {role: _read(value, role) for role, value in given.sets.items()}
    several = {role: part for role, part in sets.items() if isinstance(part, Examples)}
    if not any(part.packing for part in several.values()):
        return replace(given, sets=sets), canaries
    model = next(iter(given.shields.values())).model
    if isinstance(model, Estimator):
        raise DataError(
            f"Expected one table for {model!r}, got several inputs by name. A dict of columns is a "
            "table with pandas.DataFrame(columns)."
        )
    for role, value in sets.items():
        if value is not None and not isinstance(value, Examples):
            several[role] = as_examples(value, role)
    own = canaries.canaries if isinstance(canaries, Planted) else canaries
    parts = dict(several)
    if isinstance(own, Canaries):
        parts |= {"planted canaries": own.planted, "held-out canaries": own.held_out}
    parts = _of_one_form(parts, _float_type(model))
    packing = parts["members"].packing
    assert packing is not None  # noqa: S101  # all have the form of one that has it
    if given.columns and tuple(given.columns) != packing.columns:
        raise ConfigError(
            "Expected no columns beside several inputs, whose numbers are named by them: "
            f"{', '.join(packing.columns[:4])}, ... Leave columns out."
        )
    if isinstance(own, Canaries):
        canaries = replace(
            own,
            planted=replace(parts["planted canaries"], name=own.planted.name),
            held_out=replace(parts["held-out canaries"], name=own.held_out.name),
        )
    by_rows = Packed.of(packing, parts)
    asked = by_rows(model)
    shields = {name: shield.with_model(asked) for name, shield in given.shields.items()}
    rows = {role: parts[role] for role in several}
    train = _trained(given.train, by_rows)
    columns = packing.columns
    return replace(
        given, shields=shields, sets={**sets, **rows}, columns=columns, train=train
    ), canaries


def model_itself(model: nn.Module) -> nn.Module:
    """Returns the model that is audited, without what reads codes or rows for it."""
    return model.asked if isinstance(model, TableModel | PackedModel) else model


def asked_like(model: nn.Module, other: nn.Module) -> nn.Module:
    """Puts another model behind rows where the audited one is behind them."""
    if not isinstance(model, PackedModel) or isinstance(other, PackedModel):
        return other
    return Packed(model.packing, model.low, model.high)(other)


def _read(value: Any, role: str) -> Any:
    """Reads several inputs as rows; leaves everything else as it is."""
    if value is None or isinstance(value, Examples):
        return value
    value = of_loader(value, role)
    return value if several_of(value, needs_labels=False) is None else as_examples(value, role)


def _of_one_form(parts: Mapping[str, Examples], own: torch.dtype | None) -> dict[str, Examples]:
    """Gives all sets the order of the members' inputs, and types that hold every set's numbers.

    own: the float type of the model's weights, in which it gets real numbers.
    Errors: DataError for sets of other inputs.
    """
    first = parts["members"]
    columns = {role: _columns_like(first, part) for role, part in parts.items()}
    names = list(columns["members"])
    dtypes = {name: _common([held[name].dtype for held in columns.values()], own) for name in names}
    is_named = first.packing is not None and bool(first.packing.names)

    def repacked(part: Examples, held: Mapping[str, Tensor]) -> Examples:
        inputs = {name: held[name].to(dtypes[name]) for name in names}
        rows, packing = packed(inputs if is_named else tuple(inputs.values()), part.name)
        return replace(part, inputs=rows, packing=packing)

    return {role: repacked(part, columns[role]) for role, part in parts.items()}


def _columns_like(first: Examples, part: Examples) -> dict[str, Tensor]:
    """Returns the inputs of a set by name, in its own order; refuses others than the first's."""
    wanted, here = first.packing, part.packing
    if wanted is None or here is None:
        require_one_shape(first, part)
    assert wanted is not None and here is not None  # noqa: S101, PT018  # or else refused
    shapes = [dict(zip(form.shown_names, form.shapes, strict=True)) for form in (wanted, here)]
    if shapes[0] != shapes[1]:
        require_one_shape(first, part)
    inputs, _ = part.in_own_form()
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return dict(zip(here.shown_names, values, strict=True))


def _common(dtypes: list[torch.dtype], own: torch.dtype | None) -> torch.dtype:
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    return own if own is not None and common.is_floating_point else common


def _float_type(model: nn.Module) -> torch.dtype | None:
    return next((w.dtype for w in model.parameters() if w.is_floating_point()), None)


def _trained(train: Train | None, by_rows: Packed) -> Train | None:
    if isinstance(train, Recipe):
        return replace(train, make_model=MakePacked(train.make_model, by_rows))
    return TrainOnInputs(train, by_rows) if callable(train) else train
