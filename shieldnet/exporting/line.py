"""A shield as one straight line of plain tensor operators, for a graph that runs without shieldnet.

A graph has no refusals and no source of noise of its own. Noise is an input, drawn by the server
that runs the graph; all fields of a row that the shield would refuse are NaN, or ``NO_LABEL``.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from shieldnet.core.errors import ConfigError
from shieldnet.core.opaque_ops import lowered
from shieldnet.defenses import Chain, Defense
from shieldnet.exporting.example import Example
from shieldnet.exporting.laws import law_of, limits_of
from shieldnet.outputs.functions import Around
from shieldnet.outputs.nested import Path, is_list_of_dicts, named_leaves, replaced, written
from shieldnet.shield.fields import place_of, refuse_undefended
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import named_by

NO_LABEL = -1
"""What a graph answers in place of a label where the shield would refuse the row."""
NO_STEPS = -(2**63)
"""The same for whole steps of a mechanism."""


@dataclass(frozen=True)
class NoiseInput:
    """Describes one noise input of a graph, and draws it.

    name: of the input. field: that it is for, by its name in the shield's settings; "" for the
    answer itself. place: of the stage in the field's chain. sizes: of the rows that the stage gets,
    without the batch.
    """

    name: str
    field: str
    place: int
    stage: Defense
    sizes: tuple[int, ...]

    def draw(self, rows: int) -> Tensor:
        """Draws the noise of a batch from the operating system.

        Shapes: -> (rows, ...): int32 steps of a grid, or int64 words.
        """
        drawn = self.stage.draw(torch.Size((rows, *self.sizes)))
        if drawn is None:
            raise ConfigError(f"{self.stage} draws nothing.")
        return drawn.to(getattr(torch, self.law["dtype"]))

    @property
    def law(self) -> dict[str, Any]:
        """Returns how it is drawn, as ``shieldnet.runtime`` reads it."""
        return law_of(self.stage, self.sizes)

    @property
    def fed_sizes(self) -> tuple[int, ...]:
        """Returns the sizes of the input, without the batch."""
        law = self.law
        return (*law["sizes"], *([len(law["laws"])] if len(law["laws"]) > 1 else []))

    def checked(self, noise: Tensor, rows: Any) -> tuple[Tensor, Tensor]:
        """Returns the noise, and which rows of it can have been drawn.

        Its type and its number of rows are operators of the graph: others stop the batch, lest one
        draw be spread over all rows. Numbers that are never drawn are replaced.
        Shapes: (rows, ...) -> (rows, ...), (rows,) bool.
        """
        law = self.law
        torch._assert_tensor_metadata(noise, dtype=getattr(torch, law["dtype"]))
        noise = noise.reshape(rows, *self.fed_sizes)
        columns = [noise] if len(law["laws"]) == 1 else list(noise.unbind(-1))
        fit, kept = [], []
        for column, one in zip(columns, law["laws"], strict=True):
            limits = limits_of(one)
            kept.append(column if limits is None else column.clamp(*limits))
            if limits is not None:
                fit.append((kept[-1] != column).flatten(1).sum(1) == 0)
        return (kept[0] if len(kept) == 1 else torch.stack(kept, -1)), all_of(fit)


class Line(nn.Module):
    """Answers as a shield does, given its noise.

    ``forward`` takes the arguments of the example under the model's own names, and one more for
    each noise input.
    """

    def __init__(self, shield: Shield, example: Any) -> None:
        super().__init__()
        require_plain(shield)
        self.settings, self.model = shield.settings, shield.model
        is_read = isinstance(example, Example)
        self.example = example if is_read else Example.of(shield.model, example)
        args, kwargs = self.example.call(self.example.given)
        with torch.no_grad():
            self.noise = _noise_inputs(shield, shield.model(*args, **kwargs))
            if self.noise and self.example.dynamic:
                _require_fixed_sizes(self, shield)
        self.noise_sizes = {one.name: one.fed_sizes for one in self.noise}
        given = self.example.given
        self.batched = next(name for name, value in given.items() if value.dim())
        _show_signature(self, [*given, *(one.name for one in self.noise)])

    @property
    def sizes(self) -> dict[str, tuple[int | str, ...]]:
        """Returns the sizes of all inputs by name."""
        named = {name: self.example.sizes(value) for name, value in self.example.given.items()}
        return named | {name: ("batch", *sizes) for name, sizes in self.noise_sizes.items()}

    def forward(self, **inputs: Tensor) -> Any:
        """Answers. Shapes: the model's arguments and noise -> what the shield releases."""
        settings = self.settings
        rows = inputs[self.batched].shape[0]
        output = self.model(**{name: inputs[name] for name in self.example.given})
        main = place_of(output, settings)
        refuse_undefended(output, main, settings)
        drawn: dict[tuple[str, int], Tensor] = {}
        with lowered() as fit:
            for one in self.noise:
                drawn[one.field, one.place], possible = one.checked(inputs[one.name], rows)
                fit.append(possible)

            def change(path: Path, leaf: Any) -> Any:
                field = "" if path == main else named_by(path, settings.others) or ""
                chain = settings.others[field] if field else settings.chain
                return leaf if chain is None else _released(chain, leaf, field, drawn)

            released = replaced(output, change, without=settings.is_dropped)
        # All of a row, in every field of it: the shield would release nothing.
        held = all_of([one if one.dim() == 1 else one.flatten(1).all(1) for one in fit])

        def mark(path: Path, leaf: Any) -> Any:
            field = "" if path == main else named_by(path, settings.others) or ""
            chain = settings.others[field] if field else settings.chain
            return _marked(path, leaf, held, chain) if isinstance(leaf, Tensor) else leaf

        return replaced(released, mark)


def all_of(parts: list[Tensor]) -> Tensor:
    """Returns where all are true. Shapes: each (N,) bool -> (N,)."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole & part
    return whole


def _released(
    chain: Chain, output: Tensor, field: str, drawn: Mapping[tuple[str, int], Tensor]
) -> Tensor:
    noise = [drawn.get((field, place)) for place in range(len(chain.stages))]
    return chain(output, noise=noise)


def _marked(path: Path, leaf: Tensor, held: Tensor, chain: Chain | None) -> Tensor:
    """Marks rows that are refused, or a field without rows if any is.

    Shapes: leaf (N, ...), held (N,) bool -> (N, ...).
    Errors: ConfigError for a field, released as it is, of a type that has no mark.
    """
    if leaf.is_floating_point():
        mark: float = torch.nan
    elif leaf.dtype.is_signed and not leaf.is_complex():
        mark = NO_STEPS if chain is not None and chain.release == "integers" else NO_LABEL
    else:
        raise ConfigError(
            f"{written(path)} is released as it is, of {leaf.dtype}, in which no row can be marked "
            f"as refused. Leave it out with drop=({written(path)!r},), or return floats."
        )
    has_rows = leaf.dim() > 0 and statically_known_true(leaf.shape[0] == held.shape[0])
    shape = (-1, *[1] * (leaf.dim() - 1))
    return torch.where(held.reshape(shape) if has_rows else held.all(), leaf, mark)


def _noise_inputs(shield: Shield, output: Any) -> tuple[NoiseInput, ...]:
    """Lists the noise that the chains of an output need, in the order of its fields."""
    if is_list_of_dicts(output):
        raise ConfigError(
            "A list of dicts, as of a detector, has any number of boxes, and a graph one form. "
            "Serve this shield from Python."
        )
    settings = shield.settings
    main = place_of(output, settings)
    found: list[tuple[str, int, Defense, tuple[int, ...]]] = []
    for path, leaf in named_leaves(output).items():
        field = "" if path == main else named_by(path, settings.others)
        chain = settings.chain if path == main else settings.others.get(field or "")
        if field is None or chain is None or settings.is_dropped(path):
            continue
        sizes = tuple(chain.layout.opened(leaf).shape[1:])
        draws = [(place, one) for place, one in enumerate(chain.stages) if not one.deterministic]
        found += [(field, place, stage, sizes) for place, stage in draws]
    names = ["noise"] if len(found) == 1 else [f"noise_{number}" for number in range(len(found))]
    return tuple(NoiseInput(name, *one) for name, one in zip(names, found, strict=True))


def _require_fixed_sizes(line: Line, shield: Shield) -> None:
    """Raises ConfigError for noise whose size depends on a dynamic axis."""
    shorter = line.example.shorter()
    args, kwargs = shorter.call(shorter.given)
    if _noise_inputs(shield, shield.model(*args, **kwargs)) != line.noise:
        raise ConfigError(
            "Expected noise of a fixed size for each row, and it grows with an axis in dynamic. "
            "Leave that axis out of dynamic, and pad to the example's size."
        )


def require_plain(shield: Shield) -> None:
    """Raises ConfigError for shields that have no graph."""
    if not isinstance(shield, Shield):
        raise ConfigError(f"Expected a Shield, got {type(shield).__name__}: sn.harden(model).")
    model = shield.model
    if isinstance(model, Around) or not isinstance(model, nn.Module):
        raise ConfigError(
            "Expected a shield around a torch module, whose operators can be written down; this "
            f"one is around {model!r}. Export what it is made of by its own tools (skl2onnx for "
            "scikit-learn), and serve that behind the Shield."
        )
    if shield.micro_batch is not None:
        raise ConfigError(
            f"Expected a shield without micro_batch, got micro_batch={shield.micro_batch}: a graph "
            "gives all rows of a batch to the model at once. Leave micro_batch out if the model "
            "answers each row by itself; otherwise serve this shield from Python."
        )
    for chain in shield.settings.chains:
        for stage in chain.stages:
            if stage.reads_inputs or stage.secret:
                raise ConfigError(
                    f"{stage} holds a key, which a file would give away. Serve this shield from "
                    "Python, or leave it out."
                )
    if any(module.training for module in model.modules()):
        raise ConfigError("The model is in training mode: call shield.eval() before export.")


def _show_signature(line: Line, names: list[str]) -> None:
    """Gives a line's forward the names of its inputs, which a graph takes over."""
    taken = [name for name in names if names.count(name) > 1]
    if taken:
        raise ConfigError(f"The model has an input of its own called {taken[0]}: rename it.")
    bound = line.forward

    def forward(*args: Tensor, **kwargs: Tensor) -> Any:
        return bound(**dict(zip(names, args, strict=False)), **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shown = [inspect.Parameter(name, kind) for name in names]
    forward.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    line.__dict__["forward"] = forward
