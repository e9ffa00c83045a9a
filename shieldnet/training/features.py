"""Features: the last layer's input for each record, computed once if only it is trained."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from shieldnet.training.private.capture import NotCaptured, map_records


def features(model: nn.Module, last: nn.Module, inputs: Tensor) -> Tensor | None:
    """Returns the inputs of the layer ``last``, or None if they cannot be determined.

    The layer must be called once, its output must be the model's output, and the rest of the model
    must be a deterministic graph.
    Shapes: inputs (records, ...) -> (records, ...) on the CPU.
    """
    name = next(name for name, layer in model.named_modules() if layer is last)
    traced = copy.deepcopy(model)  # tracing may leave fake tensors in it
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
