"""Operators whose arguments are validated before they run, since torch does not check them."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from shieldnet.core.errors import DataError

_MAX_GAP = 4  # stride of a transposed convolution with an even smaller kernel


def _require(is_sound: bool, operator: str, expected: str) -> None:
    """Raises DataError for shapes that torch does not check before it reads memory."""
    if not is_sound:
        raise DataError(f"The program is damaged: {operator} expects {expected}.")


def batch_norm(
    input: Tensor,  # noqa: A002  # named as torch names it
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Calls batch normalization in evaluation mode, with one parameter per channel."""
    parameters = [weight, bias, running_mean, running_var]
    _require(
        input.dim() >= 2
        and all(tensor is None or tensor.shape == input.shape[1:2] for tensor in parameters),
        "batch_norm",
        "one number for each channel",
    )
    normalized: tuple[Tensor, Tensor, Tensor] = (
        torch.ops.aten._native_batch_norm_legit_no_training.default(
            input, weight, bias, running_mean, running_var, momentum, eps
        )
    )
    return normalized


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Calls attention with as many values as keys, and a mask of the right shape."""
    _require(
        min(query.dim(), key.dim(), value.dim()) >= 2
        and query.shape[-1] == key.shape[-1]
        and key.shape[-2] == value.shape[-2]
        and 0 not in (*key.shape[1:], *value.shape[1:]),
        "scaled_dot_product_attention",
        "as many values as keys, and queries as wide as keys",
    )
    if attn_mask is not None:
        rows, columns = (1, 1, *attn_mask.shape)[-2:]
        _require(
            rows in (1, query.shape[-2]) and columns in (1, key.shape[-2]),
            "scaled_dot_product_attention",
            "a mask of queries by keys",
        )
    answer: Tensor = torch.ops.aten.scaled_dot_product_attention.default(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return answer


def group_norm(
    input: Tensor,  # noqa: A002  # named as torch names it
    weight: Tensor | None,
    bias: Tensor | None,
    N: int,  # noqa: N803  # named as torch names it
    C: int,  # noqa: N803
    HxW: int,  # noqa: N803
    group: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Calls group normalization with the sizes of its input."""
    _require(
        input.dim() >= 2 and (N, C, HxW) == (*input.shape[:2], math.prod(input.shape[2:])),
        "native_group_norm",
        "the sizes of its input",
    )
    normalized: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm.default(
        input, weight, bias, N, C, HxW, group, eps
    )
    return normalized


def _require_layers(
    name: str,
    inputs: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    is_bidirectional: bool,
    is_batch_first: bool,
) -> None:
    """Raises DataError unless each parameter of a recurrent network has its layer's shape."""
    is_shaped = inputs.dim() == 3 and all(state.dim() == 3 for state in states)
    _require(is_shaped and min(inputs.shape) > 0, name, "a batch of sequences, and states")
    directions = 2 if is_bidirectional else 1
    _require(0 < layers * directions == len(states[0]), name, "a state for each layer")
    hidden, released = states[-1].shape[-1], states[0].shape[-1]  # they differ in a projected LSTM
    rows = _GATES[name] * hidden
    shapes: list[tuple[int, ...]] = []
    for layer in range(layers):
        width = inputs.shape[-1] if layer == 0 else released * directions
        layer_shapes: list[tuple[int, ...]] = [(rows, width), (rows, released)]
        layer_shapes += [(rows,)] * (2 if has_biases else 0)
        layer_shapes += [(released, hidden)] if released != hidden else []
        shapes += layer_shapes * directions
    batch = inputs.shape[0 if is_batch_first else 1]
    _require(
        [tuple(parameter.shape) for parameter in parameters] == shapes
        and all(state.shape[:2] == (layers * directions, batch) for state in states),
        name,
        "parameters and states of the shapes of its layers",
    )


_GATES = MappingProxyType({"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1})


def lstm(
    input: Tensor,  # noqa: A002  # named as torch names it
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Calls an LSTM whose parameters have the right shapes."""
    _require(len(hx) == 2, "lstm", "two states")
    _require_layers("lstm", input, hx, params, has_biases, num_layers, bidirectional, batch_first)
    answer: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.lstm.input(
        input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
    )
    return answer


def _recurrent(
    name: str,
    operator: Callable[..., tuple[Tensor, Tensor]],
    inputs: Tensor,
    state: Tensor,
    parameters: Sequence[Tensor],
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    has_biases, layers, _, _, is_bidirectional, is_batch_first = settings
    _require_layers(
        name, inputs, [state], parameters, has_biases, layers, is_bidirectional, is_batch_first
    )
    return operator(inputs, state, parameters, *settings)


def gru(
    input: Tensor,  # noqa: A002  # named as torch names it
    hx: Tensor,
    params: Sequence[Tensor],
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """Calls a GRU whose parameters have the right shapes."""
    return _recurrent("gru", torch.ops.aten.gru.input, input, hx, params, *settings)


def rnn_tanh(
    input: Tensor,  # noqa: A002  # named as torch names it
    hx: Tensor,
    params: Sequence[Tensor],
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """Calls a recurrent network whose parameters have the right shapes."""
    return _recurrent("rnn_tanh", torch.ops.aten.rnn_tanh.input, input, hx, params, *settings)


def rnn_relu(
    input: Tensor,  # noqa: A002  # named as torch names it
    hx: Tensor,
    params: Sequence[Tensor],
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """Calls a recurrent network whose parameters have the right shapes."""
    return _recurrent("rnn_relu", torch.ops.aten.rnn_relu.input, input, hx, params, *settings)


def _require_stride(weight: Tensor, stride: Sequence[int]) -> None:
    """Raises DataError for a transposed convolution with large gaps between its kernels.

    With large gaps oneDNN reads past the end of long inputs.
    """
    kernel = weight.shape[2:]
    steps = [*stride] * len(kernel) if len(stride) == 1 else stride or [1] * len(kernel)
    _require(
        len(steps) == len(kernel)
        and all(step <= max(size, _MAX_GAP) for step, size in zip(steps, kernel, strict=True)),
        "a transposed convolution",
        "strides of at most its kernel's size",
    )


def convolution(
    input: Tensor,  # noqa: A002  # named as torch names it
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Calls a convolution; a transposed one must not have large gaps."""
    if transposed:
        _require_stride(weight, stride)
    answer: Tensor = torch.ops.aten.convolution.default(
        input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    return answer


def conv_transpose1d(
    input: Tensor,  # noqa: A002  # named as torch names it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    *settings: Any,
    **named: Any,
) -> Tensor:
    """Calls a transposed convolution without large gaps."""
    _require_stride(weight, stride)
    return torch.conv_transpose1d(input, weight, bias, stride, *settings, **named)


def conv_transpose2d(
    input: Tensor,  # noqa: A002  # named as torch names it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    *settings: Any,
    **named: Any,
) -> Tensor:
    """Calls a transposed convolution without large gaps."""
    _require_stride(weight, stride)
    return torch.conv_transpose2d(input, weight, bias, stride, *settings, **named)


def conv_transpose3d(
    input: Tensor,  # noqa: A002  # named as torch names it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    *settings: Any,
    **named: Any,
) -> Tensor:
    """Calls a transposed convolution without large gaps."""
    _require_stride(weight, stride)
    return torch.conv_transpose3d(input, weight, bias, stride, *settings, **named)


CHECKED: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        torch.ops.aten._native_batch_norm_legit_no_training.default: batch_norm,
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.convolution.default: convolution,
        torch.ops.aten.conv_transpose1d.default: conv_transpose1d,
        torch.ops.aten.conv_transpose2d.input: conv_transpose2d,
        torch.ops.aten.conv_transpose3d.input: conv_transpose3d,
        torch.ops.aten.native_group_norm.default: group_norm,
        torch.ops.aten.lstm.input: lstm,
        torch.ops.aten.gru.input: gru,
        torch.ops.aten.rnn_tanh.input: rnn_tanh,
        torch.ops.aten.rnn_relu.input: rnn_relu,
    }
)
"""Operators of which torch does not check all shapes (2.13 on a CPU reads or writes out of bounds)
and their replacements: functions of this module, which code generated by fx imports by name."""
