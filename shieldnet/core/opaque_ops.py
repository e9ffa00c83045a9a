"""Operations that compilers must call unchanged (refusals, ties, draws), and refusal of tracers."""

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
    """Registers a function as a torch operator, so that ``fullgraph=True`` does not break it up.

    shapes: function that returns empty tensors of the output shapes and dtypes. Eager calls bypass
    the operator, whose dispatch is ten times slower. draws: whether the function draws at random;
    its operator is then an ordered effect, which no compiler may merge, fold, move or remove, and
    it refuses tracers that would record a single draw forever.
    Errors: ConfigError for a draw inside ``torch.jit.trace`` and the like (``refuse_recording``).
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
    """Returns whether torch records or simulates the operations of this call.

    True inside torch.compile, torch.export and make_fx, and for tensors without data.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
"""Returns whether torch.export is tracing this call, so that no answer is released."""


_fit: ContextVar[list[torch.Tensor] | None] = ContextVar("_fit", default=None)


@contextmanager
def lowered() -> Iterator[list[torch.Tensor]]:
    """Makes checks of values record their results in a list, for a graph, which cannot refuse.

    Each check adds a boolean tensor, False where a row would be refused, and continues with a
    harmless row in its place, so that it cannot stop the rest of the batch.
    Shapes: each (N, *positions).
    """
    fit: list[torch.Tensor] = []
    token = _fit.set(fit)
    try:
        yield fit
    finally:
        _fit.reset(token)


def lowered_checks() -> list[torch.Tensor] | None:
    """Returns the list of ``lowered``; None where checks refuse."""
    return None if torch.compiler.is_dynamo_compiling() else _fit.get()


def refuse_recording(what: str) -> None:
    """Refuses tracers that would record the draws, checks or branches of a single call.

    what: what would be recorded, for the message.
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
            f"torch.fx.symbolic_trace cannot record {what}: the noise, checks and branches of this "
            f"one call would be fixed forever. {_REMEDY}"
        )
    levels = torch._C._functorch.get_interpreter_stack()
    if levels is not None and any(
        level.key() == torch._C._functorch.TransformType.Vmap for level in levels
    ):
        raise ConfigError(_VMAP.format(what))
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise ConfigError(
            f"A CUDA graph cannot record {what}: each replay would repeat the same noise. Capture "
            "the model alone, and wrap its replay in the shield."
        )


def _is_plain() -> bool:
    """Returns whether nothing at all records or transforms this call: what is nearly always so."""
    return (
        torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.fx._symbolic_trace._is_fx_tracing_flag
        and not torch.cuda.is_initialized()
    )


_REMEDY = (
    "Use torch.compile(shield) or torch.export.export(shield, ...), which repeat these steps for "
    "every answer; or trace the model alone and wrap it in the shield."
)
_JIT = (
    "torch.jit.trace, and torch.onnx.export(dynamo=False) which uses it, cannot record {}: the "
    f"noise, checks and branches of this one call would be fixed forever. {_REMEDY}"
)
_VMAP = (
    "torch.vmap cannot run {}: all examples would share one draw or check. Call it on the whole "
    "batch; every row gets independent noise."
)


def _drawing(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    @wraps(function)
    def draw(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        refuse_recording(f"the draw of noise {function.__name__}")
        return function(*args, **kwargs)

    return draw


_kernels = torch.library.Library("shieldnet", "FRAGMENT")
"""Keeps registrations alive for the lifetime of the process."""


def _register_effect(name: str) -> None:
    """Makes an operator an ordered effect that refuses tracers which meet it in a graph."""
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
