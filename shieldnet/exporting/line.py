"""A shield as one straight line of plain tensor operators, for a graph that runs without shieldnet.

A graph has no refusals and no source of noise of its own. Noise is an input, drawn by whoever owns
the graph; a row that the shield would refuse gives NaN, or ``NO_LABEL``, never an ordinary answer.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError
from shieldnet.core.opaque_ops import lowered
from shieldnet.defenses import Chain, Defense
from shieldnet.exporting.laws import law_of
from shieldnet.outputs.functions import Around
from shieldnet.outputs.nested import Path, named_leaves, replaced
from shieldnet.shield.fields import place_of, refuse_undefended
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import named_by

NO_LABEL = -1
"""What a graph answers in place of a label where the shield would refuse the row."""
NO_STEPS = -(2**63)
"""The same for whole steps of a mechanism."""


@dataclass(frozen=True)
class NoiseInput:
    """Says what one noise input of a graph holds, and draws it.

    name: of the input. field: that it is for, by its name in the shield's settings; "" for the
    answer itself. place: of the stage in the field's chain. sizes: of the rows that the stage gets,
    behind the batch.
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
        """Says how it is drawn, as ``shieldnet.runtime`` reads it."""
        return law_of(self.stage, self.sizes)


class Line(nn.Module):
    """Answers as a shield does, given its noise.

    ``forward`` takes the arguments of the example under the model's own names, and one more for
    each noise input.
    """

    def __init__(self, shield: Shield, example: Any) -> None:
        super().__init__()
        _require_plain(shield)
        self.settings, self.model = shield.settings, shield.model
        args, kwargs = arguments_of(example)
        self.given = _named(shield.model, args, kwargs)
        with torch.no_grad():
            self.noise = _noise_inputs(shield, shield.model(*args, **kwargs))
        self.positional = tuple(self.given)[: len(args)]
        _show_signature(self, [*self.given, *(one.name for one in self.noise)])

    def forward(self, **inputs: Tensor) -> Any:
        """Answers. Shapes: the model's arguments and noise -> what the shield releases."""
        settings = self.settings
        drawn = {(one.field, one.place): inputs[one.name] for one in self.noise}
        output = self.model(**{name: inputs[name] for name in self.given})
        if isinstance(output, Tensor) and settings.main is None:
            return _released(settings.chain, output, "", drawn)
        main = place_of(output, settings)
        refuse_undefended(output, main, settings)

        def change(path: Path, leaf: Any) -> Any:
            field = "" if path == main else named_by(path, settings.others) or ""
            chain = settings.others[field] if field else settings.chain
            return leaf.clone() if chain is None else _released(chain, leaf, field, drawn)

        return replaced(output, change, without=settings.is_dropped)


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments that an example stands for: a tensor, a tuple or a dict of names.

    Arrays become tensors: a graph takes nothing else.
    """
    if isinstance(example, Mapping):
        return (), {name: _as_tensor(value) for name, value in example.items()}
    return tuple(map(_as_tensor, example if isinstance(example, tuple) else (example,))), {}


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _released(
    chain: Chain, output: Tensor, field: str, drawn: Mapping[tuple[str, int], Tensor]
) -> Tensor:
    noise = [drawn.get((field, place)) for place in range(len(chain.stages))]
    with lowered() as wrong:
        answers = chain(output, noise=noise)
    total = wrong[0]
    for more in wrong[1:]:
        total = total + more
    # All of a row that the shield would refuse, at every position of it.
    return _marked(answers, total if total.dim() == 1 else total.flatten(1).sum(1), chain)


def _marked(answers: Tensor, wrong: Tensor, chain: Chain) -> Tensor:
    """Marks rows that are wrong. Shapes: answers (N, ...), wrong (N,), 0 or NaN."""
    wrong = wrong.reshape(-1, *[1] * (answers.dim() - 1))
    if answers.is_floating_point():
        return answers + wrong
    nothing = NO_LABEL if chain.release == "labels" else NO_STEPS
    return torch.where(wrong == 0, answers, nothing)


def _noise_inputs(shield: Shield, output: Any) -> tuple[NoiseInput, ...]:
    """Lists the noise that the chains of an output need, in the order of its fields."""
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


def _require_plain(shield: Shield) -> None:
    """Raises ConfigError for shields of which there is no graph."""
    if not isinstance(shield, Shield):
        raise ConfigError(f"Expected a Shield, got {type(shield).__name__}: sn.harden(model).")
    model = shield.model
    if isinstance(model, Around) or not isinstance(model, nn.Module):
        raise ConfigError(
            "Expected a shield around a torch module, whose operators can be written down; this "
            f"one is around {model!r}. Export what it is made of by its own tools (skl2onnx for "
            "scikit-learn), and serve that behind the Shield."
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


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an example by the names that the model gives them."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as unfit:
        raise ConfigError(
            f"Expected an example as the model's arguments: {unfit}. Give a tensor, a tuple of "
            "arguments or a dict of named ones."
        ) from unfit
    parameters = inspect.signature(model.forward).parameters
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    for name in bound.arguments:
        if parameters[name].kind in several:
            raise ConfigError(
                f"Expected a model whose forward names its inputs, got *{name}: a graph's inputs "
                "need names. Write def forward(self, x)."
            )
        if parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            return {
                **{key: bound.arguments[key] for key in bound.arguments if key != name},
                **kwargs,
            }
    return dict(bound.arguments)


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
