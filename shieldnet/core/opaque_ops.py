"""Steps that a compiler must call as they are (refusals, ties, draws), and who may record them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from shieldnet.core.errors import ConfigError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

DRAWS: set[str] = set()
"""Names of the operations that draw noise; each is registered as an ordered effect."""


def opaque(
    shapes: Callable[Arguments, Result], *, draws: bool = False
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Registers a function as one operation of torch, so that ``fullgraph=True`` keeps it whole.

    shapes: returns empty tensors of the shapes and types that the function gives. Eager calls go
    straight to the function: an operation of torch costs ten times more to dispatch.
    draws: the function draws at random. Its operation is then an ordered effect, which no compiler
    may merge, fold, move or leave out, and it refuses whoever would keep one draw for ever.
    Errors: ConfigError for a draw inside ``torch.jit.trace`` and its like (``refuse_recording``).
    """

    def register(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        name = f"shieldnet::{function.__name__.lstrip('_')}"
        body = _drawing(function) if draws else function
        operation = torch.library.custom_op(name, body, mutates_args=())
        operation.register_fake(shapes)
        if draws:
            _register_effect(name)

        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if is_captured():
                captured: Result = operation(*args, **kwargs)
                return captured
            return body(*args, **kwargs)

        return call

    return register


def is_captured() -> bool:
    """Says whether torch writes the operations of this call into a graph, or imitates them.

    So do torch.compile, torch.export, make_fx and tensors without data.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
"""Says whether torch.export draws the graph of this call: nothing is answered."""


_wrong: ContextVar[list[torch.Tensor] | None] = ContextVar("_wrong", default=None)


@contextmanager
def lowered() -> Iterator[list[torch.Tensor]]:
    """Has checks of values write what they find into a list, for a graph that cannot refuse.

    Each adds a tensor that is 0 where all is well and NaN where a row would be refused.
    Shapes: each (N, *positions).
    """
    found: list[torch.Tensor] = []
    token = _wrong.set(found)
    try:
        yield found
    finally:
        _wrong.reset(token)


def found_wrong() -> list[torch.Tensor] | None:
    """Returns the list of ``lowered``; None where checks refuse."""
    return None if torch.compiler.is_dynamo_compiling() else _wrong.get()


def refuse_recording(what: str) -> None:
    """Refuses ways to record a call that keep what was drawn, checked or decided in that one call.

    what: that would be recorded, for the message.
    Errors: ConfigError inside torch.jit.trace (and ONNX export by it), torch.fx.symbolic_trace,
        torch.vmap and the capture of a CUDA graph.
    """
    if torch.compiler.is_compiling() or _is_plain():
        return
    if torch._C._get_tracing_state() is not None:
        raise ConfigError(_JIT.format(what))
    is_make_fx = torch.fx.experimental.proxy_tensor._CURRENT_MAKE_FX_TRACER is not None
    if torch.fx._symbolic_trace._is_fx_tracing_flag and not is_make_fx:
        raise ConfigError(
            f"torch.fx.symbolic_trace cannot record {what}: what is drawn, checked or decided "
            f"while it records would be kept for ever. {_REMEDY}"
        )
    levels = torch._C._functorch.get_interpreter_stack()
    if levels is not None and any(
        level.key() == torch._C._functorch.TransformType.Vmap for level in levels
    ):
        raise ConfigError(_VMAP.format(what))
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise ConfigError(
            f"A CUDA graph cannot record {what}: each replay would repeat the same noise. Capture "
            "the model alone, and put the shield around what replays it."
        )


def _is_plain() -> bool:
    """Says whether nothing at all records or transforms this call: what is nearly always so."""
    return (
        torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.fx._symbolic_trace._is_fx_tracing_flag
        and not torch.cuda.is_initialized()
    )


_REMEDY = (
    "Use torch.compile(shield) or torch.export.export(shield, ...), which call these steps anew "
    "for every answer; or trace the model alone and put the shield around it."
)
_JIT = (
    "torch.jit.trace, and torch.onnx.export(dynamo=False) which uses it, cannot record {}: the "
    f"noise, checks and branches of this one call would be kept for ever. {_REMEDY}"
)
_VMAP = (
    "torch.vmap cannot run {}: one draw, or one check, would serve all examples. Call it on the "
    "batch as it is; every row gets noise of its own."
)


def _drawing(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    @wraps(function)
    def draw(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        refuse_recording(f"the draw of noise {function.__name__}")
        return function(*args, **kwargs)

    return draw


_kernels = torch.library.Library("shieldnet", "FRAGMENT")
"""Keeps what is registered for operations while the process lives."""


def _register_effect(name: str) -> None:
    """Makes an operation an ordered effect, and has it refuse tracers that meet it in a graph."""
    from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

    function = name.partition("::")[2]
    overload = getattr(torch.ops.shieldnet, function).default
    _register_effectful_op(overload, _EffectType.ORDERED)
    for key, refusal in (("Tracer", _JIT), ("FuncTorchVmapMode", _VMAP)):
        _kernels.impl(function, _refusing(refusal.format(f"the draw of noise {function}")), key)
    DRAWS.add(name)


def _refusing(message: str) -> Callable[..., None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConfigError(message)

    return refuse
