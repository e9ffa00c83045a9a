"""The model that is served: what it takes and gives by name, and how it is asked."""

import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet.core.errors import AnswerError, ConfigError, ShieldnetError
from shieldnet.outputs.nested import named_leaves, written
from shieldnet.serving.app.datatypes import OF_DTYPE
from shieldnet.serving.app.limits import Limits
from shieldnet.serving.app.protocol import MAX_RANK, MAX_TENSORS
from shieldnet.serving.app.requests import Form
from shieldnet.shield.fields import place_of
from shieldnet.shield.module import Shield
from shieldnet.shipping.description import TensorFacts, inputs_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ANY_SIZE = 4  # of generated inputs, where the model takes any


class ServedModel:
    """Names a shield's inputs and outputs, and asks it with tensors by name.

    name, version: in addresses. inputs: what the model takes, each with rows first; or example: a
    few rows, as a tensor or an array, a tuple of arguments or a dict of named ones. The shield is
    asked once when this is made, about the example or about generated inputs, in a batch as large
    as any later one: that tries its rows, and shows its outputs. That answer is discarded.

    Errors: ConfigError for inputs that are not described, that the protocol has no datatype for or
        that the model fails on; AnswerError for a shield that refuses to answer.
    """

    def __init__(
        self,
        shield: Shield,
        *,
        name: str = "model",
        version: str = "1",
        inputs: Sequence[TensorFacts] = (),
        example: Any = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits = limits or Limits()
        for what, text in (("name", name), ("version", version)):
            if not _NAME.fullmatch(text):
                raise ConfigError(
                    f"Expected {what} as up to 100 letters, digits, dots, underscores and hyphens, "
                    f"got {what}={text!r}."
                )
        self.shield, self.name, self.version, self._example = shield, name, version, example
        given = None if example is None else inputs_of(example, shield.model)
        self.inputs = _servable(tuple(inputs) if given is None else given)
        self._named = _by_name(shield, self.inputs)
        self._device = next((one.device for one in shield.parameters()), torch.device("cpu"))
        self.outputs: tuple[TensorFacts, ...] = ()
        self.main = ""  # the output that the shield's defenses are about
        rows = max(2, limits.max_rows, limits.max_batch_rows)
        self.outputs = self._seen(_rows(self.inputs, example, rows), rows)
        names = tuple(one.name for one in self.outputs)
        ids = _ids_of(shield.model, self.inputs)
        self.form = Form(self.inputs, names, limits.max_rows, name, version, ids)

    def ask(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the released answers by name, a row for each row of the inputs.

        Errors: AnswerError for what may not be released; whatever the model raises.
        """
        rows = len(next(iter(inputs.values())))
        answers = self._ask(inputs)
        if self.outputs and [*answers] != [one.name for one in self.outputs]:
            raise AnswerError("The model answers with other fields than at first.")
        for answer in answers.values():
            if answer.dim() == 0 or len(answer) != rows:
                raise AnswerError("The model does not answer with a row for each row.")
        return answers

    def behind(self, shield: Shield) -> "ServedModel":
        """Returns the same model behind another shield, which is asked once, too.

        Errors: as of the class; ConfigError for a shield that gives other outputs.
        """
        other = ServedModel(
            shield,
            name=self.name,
            version=self.version,
            inputs=self.inputs,
            example=self._example,
            limits=self.limits,
        )
        if other.outputs != self.outputs:
            raise ConfigError(
                f"Expected outputs as {self.shield.describe()} gives them, {self.outputs}; "
                f"{shield.describe()} gives {other.outputs}."
            )
        return other

    def by_name(self, example: Any) -> dict[str, Tensor]:
        """Returns the rows of an example, in any of its forms, as the model is asked."""
        return _rows(self.inputs, example)

    def _ask(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        held = {name: value.to(self._device) for name, value in inputs.items()}
        with torch.no_grad():
            released = self.shield(**held) if self._named else self.shield(*held.values())
        if not self.outputs:
            is_one = isinstance(released, Tensor | np.ndarray)
            place = () if is_one else place_of(released, self.shield.settings)
            self.main = _output_name(place, self.inputs)
        answers = {}
        for path, leaf in named_leaves(released).items():
            value = torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf
            if not isinstance(value, Tensor) or _kind(value) not in OF_DTYPE:
                raise AnswerError(f"The protocol has no datatype for {type(leaf).__name__}.")
            answers[_output_name(path, self.inputs)] = value
        return answers

    def _seen(self, inputs: Mapping[str, Tensor], rows: int) -> tuple[TensorFacts, ...]:
        """Asks once, and describes the outputs."""
        try:
            answers = self.ask(inputs)
        except ShieldnetError:
            raise
        except Exception as failed:  # the model's own: whatever it raises
            first = next(iter(str(failed).splitlines()), "")
            raise ConfigError(
                f"The model fails on {rows} rows before it is served: {type(failed).__name__}: "
                f"{first:.300} Give a few real inputs: example=inputs[:8]."
            ) from failed
        return tuple(
            TensorFacts(name, (None, *answer.shape[1:]), _kind(answer))
            for name, answer in answers.items()
        )


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _output_name(path: tuple[str, ...], inputs: Sequence[TensorFacts]) -> str:
    """Returns the name of an output, as exported graphs have it."""
    name = written(path) if path else "answer"
    return f"released_{name}" if any(one.name == name for one in inputs) else name


def _servable(inputs: tuple[TensorFacts, ...]) -> tuple[TensorFacts, ...]:
    if not inputs:
        raise ConfigError(
            "What the model takes is not known: the folder does not say it. Give a few inputs: "
            "example=..."
        )
    names = [one.name for one in inputs]
    if len(set(names)) != len(names) or len(names) > MAX_TENSORS:
        raise ConfigError(f"Expected at most {MAX_TENSORS} inputs of different names, got {names}.")
    for one in inputs:
        has_rows = 0 < len(one.shape) <= MAX_RANK and one.shape[0] is None
        if one.dtype not in OF_DTYPE or not has_rows or 0 in one.shape:
            raise ConfigError(
                f"Expected each input as numbers in {', '.join(OF_DTYPE)}, with rows of any number "
                f"as the first of at most {MAX_RANK} axes; {one.name} is {one.dtype} of shape "
                f"{one.shape}."
            )
    return inputs


def _by_name(shield: Shield, inputs: Sequence[TensorFacts]) -> bool:
    """Returns whether several inputs are given by name; by their order otherwise."""
    if len(inputs) == 1:
        return False
    model = shield.model
    forward = getattr(model, "program", model).forward
    try:
        inspect.signature(forward).bind(**{one.name: None for one in inputs})
    except (TypeError, ValueError):
        if nested := [one.name for one in inputs if "." in one.name]:
            raise ConfigError(
                f"Expected tensors as the arguments of the model, got {nested[0]} inside another. "
                "Serve a module whose forward takes each by itself."
            ) from None
        return False
    return True


def _rows(
    inputs: Sequence[TensorFacts], example: Any, rows: int | None = None
) -> dict[str, Tensor]:
    """Returns inputs of so many rows: those of the example again and again, or generated ones."""
    if example is None:
        return {one.name: _generated(one, rows or 0) for one in inputs}
    if isinstance(example, Mapping):
        values: list[Any] = list(example.values())
    else:
        values = list(example) if isinstance(example, tuple) else [example]
    given = dict(zip((one.name for one in inputs), map(torch.as_tensor, values), strict=True))
    for name, value in given.items():
        if len(value) < 2:
            raise ConfigError(f"Expected an example of at least two rows, got 1 of {name}.")
    if rows is None:
        return given
    return {name: value[torch.arange(rows) % len(value)] for name, value in given.items()}


def _generated(facts: TensorFacts, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = [rows, *(_ANY_SIZE if size is None else size for size in facts.shape[1:])]
    dtype = OF_DTYPE[facts.dtype].dtype
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _ids_of(model: nn.Module, inputs: Sequence[TensorFacts]) -> dict[str, int]:
    """Returns how many ids a model of transformers knows, by the input that names them.

    What it does not say, or what no plain table decides, is not in it.
    """
    counts: dict[str, object] = {
        "token_type_ids": getattr(getattr(model, "config", None), "type_vocab_size", None)
    }
    with suppress(AttributeError, NotImplementedError, TypeError):
        table = model.get_input_embeddings()  # type: ignore[operator]  # of transformers
        counts["input_ids"] = table.num_embeddings if type(table) is nn.Embedding else None
    named = {one.name for one in inputs}
    return {
        name: count
        for name, count in counts.items()
        if name in named and isinstance(count, int) and count > 0
    }
