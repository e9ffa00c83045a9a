"""What goes into the last layer, of each record alone: once, where nothing else is trained."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from shieldnet.training.private.capture import NotCaptured, map_records


def features(model: nn.Module, last: nn.Module, inputs: Tensor) -> Tensor | None:
    """Returns what the layer ``last`` is called with, or None where it cannot be told.

    It can where the layer is called once, what it returns is what the model returns, and the rest
    of the model is a graph that draws nothing at random.
    Shapes: inputs (records, ...) -> (records, ...) on the CPU.
    """
    name = next(name for name, layer in model.named_modules() if layer is last)
    traced = copy.deepcopy(model)  # tracing may leave tensors without values in it
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def of_one(held: dict[str, Tensor], x: Tensor) -> Tensor:
        calls: list[Any] = []
        layer = traced.get_submodule(name)
        handle = layer.register_forward_hook(
            lambda _, inputs, output: calls.append((inputs, output))
        )
        try:
            output = functional_call(traced, held, (x.unsqueeze(0),))
        finally:
            handle.remove()
        if len(calls) != 1 or len(calls[0][0]) != 1 or calls[0][1] is not output:
            raise NotCaptured("the layer is called otherwise")
        into: Tensor = calls[0][0][0]
        if len(into) != 1:
            raise NotCaptured("the layer's rows are not records")
        return into.detach().squeeze(0)

    try:
        return map_records(of_one, held, inputs)
    except NotCaptured:
        return None
