"""The torch operators that an exported program may call, and with which arguments.

It is an allow-list of overloads: the core ATen operators that ``torch.export`` decomposes to, and
those in undecomposed programs of ordinary models. Each of them checks its indices and shapes on the
CPU, or is in ``CHECKED``, whose arguments are checked here before every call. All were tested with
hundreds of invalid arguments, in tensors at the end of mapped memory.

Not listed, and why:
- Random operators: answers would be random, by a generator that can be predicted.
- Uninitialized memory (``empty``) and views of whole storages (``as_strided``): they could return
  data that other code left in memory.
- Operators that trust their indices or sizes (``_convert_indices_from_csr_to_coo``,
  ``segment_reduce``, ``embedding_bag``, ``_fft_c2r``), and the backward operators.
- Tensor values used as sizes (``item``): a file could build a tensor of any size.
- Statistics over the batch (``_native_batch_norm_legit``): an example's answer would depend on its
  neighbors.
- Sparse, quantized and other rare layouts, files, custom operators, control flow.
"""
# ruff: noqa: SIM905  # hundreds of names are easier to read without quotes

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

CORE = frozenset(
    """
    _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default _log_softmax.default
    _native_batch_norm_legit_no_training.default _softmax.default _to_copy.default abs.default
    acos.default acosh.default adaptive_avg_pool1d.default add.Scalar add.Tensor addmm.default
    alias.default amax.default amin.default any.default any.dim any.dims arange.start_step
    argmax.default argmin.default asin.default asinh.default atan.default atan2.default
    atanh.default avg_pool1d.default avg_pool2d.default avg_pool3d.default bitwise_and.Scalar
    bitwise_and.Tensor bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor
    bitwise_xor.Scalar bitwise_xor.Tensor bmm.default cat.default ceil.default clamp.Tensor
    clamp.default clone.default col2im.default constant_pad_nd.default convolution.default
    copy.default cos.default cosh.default cumsum.default diagonal.default div.Scalar
    div.Scalar_mode div.Tensor div.Tensor_mode elu.default embedding.default eq.Scalar eq.Tensor
    erf.default exp.default expand.default expm1.default fill.Scalar flip.default floor.default
    fmod.Scalar fmod.Tensor full.default full_like.default gather.default ge.Scalar ge.Tensor
    gelu.default grid_sampler_2d.default gt.Scalar gt.Tensor hardtanh.default index.Tensor
    index_put.default index_select.default isinf.default isnan.default le.Scalar le.Tensor
    leaky_relu.default log.default log10.default log1p.default log2.default logical_and.default
    logical_not.default logical_or.default logical_xor.default lt.Scalar lt.Tensor max.dim
    max_pool2d_with_indices.default max_pool3d_with_indices.default maximum.default mean.default
    mean.dim min.dim minimum.default mm.default mul.Scalar mul.Tensor native_group_norm.default
    native_layer_norm.default ne.Scalar ne.Tensor neg.default nonzero.default permute.default
    pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prod.default prod.dim_int reciprocal.default
    reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default relu.default
    remainder.Scalar remainder.Tensor repeat.default replication_pad2d.default
    replication_pad3d.default round.default rsqrt.default scalar_tensor.default scatter.src
    scatter.value scatter_add.default scatter_reduce.two select.int select_scatter.default
    sigmoid.default sign.default sin.default sinh.default slice.Tensor slice_scatter.default
    sort.default split_with_sizes.default sqrt.default squeeze.dim squeeze.dims sub.Scalar
    sub.Tensor sum.dim_IntList sym_numel.default sym_size.int sym_stride.int tan.default
    tanh.default topk.default trunc.default unsqueeze.default upsample_bilinear2d.vec
    upsample_nearest2d.vec var.correction var.dim view.default where.self
    """.split()
)
"""Core ATen: the operators after ``ExportedProgram.run_decompositions()``."""
PLAIN = frozenset(
    """
    __and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor _assert_async.msg
    _assert_scalar.default _assert_tensor_metadata.default _upsample_bilinear2d_aa.vec
    _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec
    adaptive_avg_pool2d.default adaptive_avg_pool3d.default adaptive_max_pool1d.default
    adaptive_max_pool2d.default adaptive_max_pool3d.default addcdiv.default addcmul.default
    affine_grid_generator.default all.default all.dim all.dims alpha_dropout.default
    arange.default arange.start baddbmm.default batch_norm.default bilinear.default
    bucketize.Tensor celu.default channel_shuffle.default chunk.default clamp_max.Tensor
    clamp_max.default clamp_min.Tensor clamp_min.default clip.default concat.default
    contiguous.default conv1d.default conv1d.padding conv2d.default conv2d.padding
    conv3d.default conv3d.padding conv_transpose1d.default conv_transpose2d.input
    conv_transpose3d.input cosine_similarity.default cummax.default cummin.default
    cumprod.default detach.default diff.default dot.default dropout.default einsum.default
    erfc.default exp2.default expand_as.default eye.default eye.m feature_alpha_dropout.default
    feature_dropout.default fft_fft.default fft_fft2.default fft_fftn.default fft_ifft.default
    fft_ifft2.default fft_ifftn.default fft_irfft.default fft_irfft2.default fft_rfft.default
    fft_rfft2.default flatten.using_ints floor_divide.Scalar floor_divide.default frac.default
    glu.default grid_sampler.default group_norm.default gru.input gru_cell.default
    hardshrink.default hardsigmoid.default hardswish.default hstack.default hypot.default
    im2col.default imag.default index_add.default index_fill.int_Scalar instance_norm.default
    isfinite.default kthvalue.default layer_norm.default lerp.Scalar lerp.Tensor
    lift_fresh_copy.default linalg_vector_norm.default linear.default linspace.default
    log_sigmoid.default log_softmax.int logaddexp.default logit.default logsumexp.default
    lstm.input lstm_cell.default masked_fill.Scalar masked_fill.Tensor matmul.default
    max.default max.other max_pool1d.default max_pool2d.default max_pool3d.default median.dim
    meshgrid.default meshgrid.indexing min.default min.other mish.default movedim.int
    movedim.intlist mv.default nan_to_num.default new_full.default new_ones.default
    new_zeros.default norm.ScalarOpt_dim numpy_T.default one_hot.default ones.default
    ones_like.default outer.default pad.default pixel_shuffle.default pixel_unshuffle.default
    prelu.default quantile.scalar real.default relu6.default repeat_interleave.self_int
    replication_pad1d.default reshape.default reshape_as.default rms_norm.default rnn_relu.input
    rnn_relu_cell.default rnn_tanh.input rnn_tanh_cell.default roll.default rrelu.default
    rsub.Scalar rsub.Tensor scaled_dot_product_attention.default searchsorted.Tensor
    selu.default silu.default softmax.int softplus.default softshrink.default
    sort.stable special_expit.default split.Tensor square.default squeeze.default stack.default
    std.correction std.dim std_mean.correction std_mean.dim sum.default swapaxes.default
    t.default take.default take_along_dim.default tensor_split.sections threshold.default
    tile.default
    to.device to.dtype to.dtype_layout to.other transpose.int tril.default triu.default
    true_divide.Tensor type_as.default unbind.int unflatten.int unfold.default
    upsample_bicubic2d.vec upsample_linear1d.vec upsample_nearest1d.vec upsample_nearest3d.vec
    upsample_trilinear3d.vec var_mean.correction var_mean.dim vdot.default view_as.default
    view_as_complex.default view_as_real.default vstack.default where.ScalarOther
    where.Scalar where.ScalarSelf xlogy.Tensor zeros.default zeros_like.default
    """.split()
)
"""Operators that ``torch.export.export`` writes for ordinary models without decomposition."""
IN_PLACE = frozenset(
    """
    add_.Scalar add_.Tensor addcmul_.default clamp_.default clamp_max_.default
    clamp_min_.default copy_.default detach_.default div_.Scalar div_.Tensor dropout_.default
    elu_.default fill_.Scalar hardsigmoid_.default hardswish_.default hardtanh_.default
    index_put_.default leaky_relu_.default masked_fill_.Scalar masked_fill_.Tensor mul_.Scalar
    mul_.Tensor relu6_.default relu_.default sigmoid_.default silu_.default sub_.Scalar
    sub_.Tensor tanh_.default threshold_.default zero_.default
    """.split()
)
"""In-place operators on a tensor that the program made; every run checks that the weights are
unchanged."""
OPERATORS = CORE | PLAIN | IN_PLACE
ARITHMETIC = frozenset(
    """
    _operator.add _operator.eq _operator.floordiv _operator.ge _operator.getitem _operator.gt
    _operator.le _operator.lt _operator.mod _operator.mul _operator.ne _operator.neg
    _operator.sub _operator.truediv math.ceil math.floor math.trunc torch.sym_float
    torch.sym_int torch.sym_max torch.sym_min torch.sym_not torch.sym_sum
    """.split()
)
"""Arithmetic on sizes."""
_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+\.\w+)")
_RANDOM = re.compile(
    r"rand|bernoulli|dropout|multinomial|normal|poisson|exponential|uniform|rrelu_with"
)
_BATCH_STATISTICS = re.compile(r"_?native_batch_norm|_batch_norm_with_update|batch_norm_update")
EVALUATE = "Call model.eval() before torch.export.export."
_DECOMPOSE = (
    "Save program.run_decompositions() instead of program (or program, if you saved that), or pass "
    "the model as package.module:factory."
)
_OFF = MappingProxyType(
    {
        "train": "its answers are random, as in training",
        "training": "it uses batch statistics, or its answers are random, as in training",
        "sparse": "sparse gradients are not supported: build the layer with sparse=False",
        "sparse_grad": "sparse gradients are not supported",
        "scale_grad_by_freq": "build the layer with scale_grad_by_freq=False",
    }
)
"""Arguments that must be false, and the reason."""
_WINDOW = frozenset(
    """
    dilation divisor_override downscale_factor group groups kernel_size num_classes num_groups
    num_layers output_padding padding stride upscale_factor
    """.split()
)
_SIZE = frozenset(["size", "repeats", "dims", "output_size", "n", "m", "steps"])
_MAX_WINDOW = 2**16
_MAX_ELEMENTS = 2**30  # of a tensor that is made from numbers alone
_STRIDED = 7  # torch._export.serde.schema.Layout.Strided
_MAX_MODE = 2  # of a grid sampler: of interpolation and of padding
_DEVICES = ("cpu", "cuda")


def refusal(target: str, arguments: Mapping[str, Any]) -> str | None:
    """Returns why a call is refused, or None if it is allowed.

    arguments: by name, as ``model.json`` writes them: ``{"as_int": 3}``.
    """
    if target in ARITHMETIC:
        return None
    operator = _OPERATOR.fullmatch(target)
    if operator is None or operator[1] not in OPERATORS:
        return _unlisted(target, operator[1] if operator else "")
    for name, argument in arguments.items():
        if fault := _argument_fault(operator[1], name, argument):
            return f"calls {target} with {name}={_shown(argument)}: {fault}"
    return None


def _unlisted(target: str, name: str) -> str:
    if _RANDOM.search(name):
        return f"calls {target!r}, whose answers are random. {EVALUATE}"
    if _BATCH_STATISTICS.match(name):
        return (
            f"calls {target!r}, which makes an answer depend on its batch. {EVALUATE} For "
            "InstanceNorm layers, save the program without run_decompositions()."
        )
    if target == "torch.ops.aten.item.default" or name.startswith("_local_scalar_dense"):
        return (
            f"calls {target!r}: values of a tensor must not become sizes. Export the model without "
            "item(), or pass it as package.module:factory."
        )
    if name.lstrip("_").startswith("embedding_bag"):
        return (
            f"calls {target!r}, which does not check its offsets. Use nn.Embedding and a mean over "
            "its rows, or pass the model as package.module:factory."
        )
    return f"calls {target!r}: only plain torch operators are allowed. {_DECOMPOSE}"


def _argument_fault(operator: str, name: str, argument: Any) -> str | None:
    (kind, value), *rest = argument.items()  # a tagged union with one entry
    if rest or kind in ("as_graph", "as_custom_obj", "as_operator"):
        return "an argument must be a tensor, a number, a string or a list of these"
    if name in _OFF and value is not False and kind != "as_none":
        return f"{_OFF[name]}. {EVALUATE}"
    if name == "dropout_p" and value != 0:
        return f"{_OFF['train']}. {EVALUATE}"
    if kind == "as_layout" and value != _STRIDED:
        return "only dense tensors are allowed"
    if kind == "as_device" and value.get("type") not in _DEVICES:
        return f"expected a device of {' or '.join(_DEVICES)}"
    if name in ("interpolation_mode", "padding_mode") and value not in range(_MAX_MODE + 1):
        return f"expected an integer from 0 to {_MAX_MODE}"
    numbers = list(_numbers(argument))
    if operator.startswith("arange.") and any(abs(number) > _MAX_ELEMENTS for number in numbers):
        return f"expected at most {_MAX_ELEMENTS} numbers"
    if name in _WINDOW:
        if kind in ("as_sym_int", "as_sym_ints") and len(numbers) < _length(value):
            return "expected plain integers"
        if any(abs(number) > _MAX_WINDOW for number in numbers):
            return f"expected numbers of at most {_MAX_WINDOW}"
    if name in _SIZE and math.prod(abs(number) for number in numbers if number) > _MAX_ELEMENTS:
        return f"expected a tensor of at most {_MAX_ELEMENTS} numbers"
    return None


def _numbers(argument: Any) -> Iterator[float]:
    """Lists the numbers in an argument, in any form."""
    if isinstance(argument, Mapping):
        for value in argument.values():
            yield from _numbers(value)
    elif isinstance(argument, list):
        for value in argument:
            yield from _numbers(value)
    elif isinstance(argument, int | float) and not isinstance(argument, bool):
        yield argument


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 1


def _shown(argument: Any) -> str:
    return f"{next(iter(argument.values()), None)!r:.60}"
