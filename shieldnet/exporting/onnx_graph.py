"""A graph of torch's operators as an ONNX model, with the same ties, ticks and winners."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from shieldnet.core.checks import install_line
from shieldnet.core.errors import ConfigError
from shieldnet.exporting.onnx_names import name_outputs, name_sizes, require_rows_of_noise

OPSETS = (18, 19, 20, 21)
"""The versions of ONNX's operators that are written, each tried in ONNX Runtime."""


_MAX_BYTES = 2**31 - 2**20  # of one protobuf message, which an ONNX file is


def write_onnx(
    program: ExportedProgram,
    path: Path,
    opset: int,
    facts: Mapping[str, str],
    outputs: Sequence[str],
    noise: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, Sequence[int | str]],
) -> None:
    """Writes a graph as an ONNX model.

    facts: written into its metadata. outputs: names of the answers, in their order. noise: sizes of
        the noise inputs by name, without the batch. sizes: of all inputs by name.
    Errors: ConfigError for an opset that is not in ``OPSETS``, for an operator of the model that
        ONNX does not have, for weights over 2 GB, and without the packages for it.
    """
    if type(opset) is not int or opset not in OPSETS:
        raise ConfigError(f"Expected opset as one of {OPSETS}, got {opset!r}.")
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it and says so less clearly
    except ImportError as missing:
        raise ConfigError(
            f"An ONNX file needs {missing.name}. It comes with the extra onnx, in your clone of "
            f"shieldnet: {install_line('onnx')}"
        ) from missing
    weights = [*program.state_dict.values(), *program.constants.values()]
    held = sum(one.numel() * one.element_size() for one in weights if isinstance(one, Tensor))
    if held > _MAX_BYTES:
        raise ConfigError(
            f"An ONNX file holds 2 GB at most, and the weights of this model take "
            f"{held / 2**30:.1f} GB. Export a .pt2, which has no such limit."
        )
    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            verbose=False,
            custom_translation_table=_translations(),
        )
    except Exception as untranslated:
        raise ConfigError(
            f"torch.onnx could not write this model: {_operator_in(untranslated)} Export a .pt2, "
            "which has all of torch's operators, or write that step of the model in others."
        ) from untranslated
    if written is None:
        raise ConfigError("torch.onnx gave no model.")
    model = written.model_proto
    name_outputs(model.graph, outputs)
    require_rows_of_noise(model.graph, noise)
    name_sizes(model.graph, sizes)
    for node in (*model.graph.node, *(node for one in model.functions for node in one.node)):
        del node.metadata_props[:]  # where the code stands on this machine
    for name in sorted(facts):
        entry = model.metadata_props.add()
        entry.key, entry.value = name, facts[name]
    onnx.save_model(model, str(path))


def _translations() -> dict[Any, Callable[..., Any]]:
    """Translates operators that torch.onnx translates to something else than torch computes.

    A stable sort is TopK, which promises the lower of equals. A number keeps all its digits: torch
    takes it through float32, and a division by 0.1 in float64 then rounds to other multiples.
    """
    from onnx import helper
    from onnxscript import opset18 as op

    def sort(self: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
        return op.TopK(self, op.Shape(self, start=-1), axis=dim, largest=int(descending), sorted=1)

    def sort_by_default(self: Any, dim: int = -1, descending: bool = False) -> Any:
        return sort(self, None, dim, descending)

    def scalar_tensor(s: Any, dtype: int = 1, **_: Any) -> Any:
        if isinstance(s, bool | int | float):
            return op.Constant(value=helper.make_tensor("number", dtype, [], [s]))
        return op.Cast(s, to=dtype)

    def take(self: Any, index: Any) -> Any:
        everything: Any = op.Constant(value_ints=[-1])
        return op.Gather(op.Reshape(self, everything), index, axis=0)

    return {
        torch.ops.aten.sort.stable: sort,
        torch.ops.aten.sort.default: sort_by_default,
        torch.ops.aten.take.default: take,
        torch.ops.aten.scalar_tensor.default: scalar_tensor,
    }


def _operator_in(failed: Exception) -> str:
    lines = [line.strip() for line in str(failed).splitlines()]
    told = [line for line in lines if "No ONNX function found" in line or "Error when" in line]
    return (told or lines or [type(failed).__name__])[0][:300]
