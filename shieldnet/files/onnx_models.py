"""ONNX models, run by ONNX Runtime: black boxes without gradients."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.core.checks import optional
from shieldnet.core.errors import AnswerError, DataError
from shieldnet.files.onnx_operators import LOOPS, OPERATORS, RANDOM
from shieldnet.files.sizes import require_bytes, require_file

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
_STANDARD = ("", "ai.onnx")
_MIN_VERSION = 7  # of ONNX's operators: since then dropout is off by default
_MODE = 2  # index of Dropout's input that sets training mode
_BRANCHES = ("then_branch", "else_branch")
_UNNEEDED = ("metadata_props", "training_info", "doc_string")
"""Parts of a file that are dropped: metadata can hold settings of ONNX Runtime."""


class OnnxModel(nn.Module):
    """Runs an ONNX model on the CPU, with its only input and one of its outputs.

    It holds the file's bytes and can be pickled. output: name of the output.
    """

    def __init__(self, name: str, content: bytes, output: str = "") -> None:
        super().__init__()
        self.name = name
        self.content = content
        self.output = output
        self.training = False
        self._session: Any = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Shapes: (rows, ...) -> the model's output.

        Errors: DataError for invalid inputs, AnswerError for an output that is not a tensor.
        """
        session = self.session()
        (entry,) = session.get_inputs()
        dtype = _TYPES.get(entry.type)
        if dtype is None:
            raise DataError(f"{self.name} takes {entry.type}, which no examples can have.")
        array = _exactly(inputs.detach().cpu(), dtype, self.name).contiguous().numpy()
        try:
            output = self.output or session.get_outputs()[0].name
            released = session.run([output], {entry.name: array})[0]
        except Exception as unfit:  # ONNX Runtime's errors have no public base class
            shape = tuple(inputs.shape)
            raise DataError(
                f"{self.name} refuses inputs of shape {shape} (it takes {entry.shape}): "
                f"{str(unfit).splitlines()[0]:.200}{_of_one_size(entry.shape)}"
            ) from unfit
        if not hasattr(released, "dtype") or released.dtype.kind not in "fiub":
            raise AnswerError(f"Expected numbers from {self.name}, got {type(released).__name__}.")
        return torch.from_numpy(released.copy())

    @property
    def input_name(self) -> str:
        """Returns the name of its only input."""
        return str(self.session().get_inputs()[0].name)

    @property
    def dtype(self) -> torch.dtype | None:
        """Returns the dtype of its input, or None if torch has no such dtype."""
        return _TYPES.get(self.session().get_inputs()[0].type)

    def session(self) -> Any:
        """Returns ONNX Runtime's session, created on first use."""
        if self._session is None:
            self._session = _session(self.content, self.name)
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def __repr__(self) -> str:
        return f"OnnxModel({self.name})"


def _exactly(inputs: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Casts inputs; raises DataError if that changes a value, as images in [0, 1] become 0."""
    cast = inputs.to(dtype)
    changed = cast.to(inputs.dtype) != inputs
    if changed.any():
        value = inputs[changed][0].item()
        kind = str(dtype).removeprefix("torch.")
        fix = f"inputs.to(torch.{kind})" if dtype.is_floating_point else "whole numbers"
        raise DataError(
            f"{name} takes {kind}, and the input {value:g} ({inputs.dtype}) does not fit. Pass "
            f"{fix}{', 0 to 255 for an image' if dtype == torch.uint8 else ''}, or export the "
            f"model for {inputs.dtype}."
        )
    return cast


def load_onnx(path: Path, output: str = "") -> nn.Module:
    """Reads an ONNX model that uses only listed operators and is contained in a single file.

    output: name of the output to use, if there are several.
    ONNX Runtime gets the checked content, serialized again, not the file: a file that two parsers
    interpret differently is interpreted only once.
    Errors: DataError for a file that is not ONNX, has data in other files, uses an operator that is
        not listed, takes more than one input, or has several outputs and none is named.
    """
    size = require_file(path, "model")
    require_bytes(size, path, "model")
    model = OnnxModel(path.name, _rebuilt(path.read_bytes(), path))
    inputs = model.session().get_inputs()
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs)
        raise DataError(f"Expected one input of {path}, got {len(inputs)}: {names}.")
    model.output = _output_of(model.session().get_outputs(), output, path)
    return model


def clean_onnx(content: bytes, path: Path) -> bytes:
    """Returns what ``load_onnx`` takes of a file's content: listed operators, no metadata.

    path: for messages. Errors: DataError, as in ``load_onnx``.
    """
    return _rebuilt(content, path)


def metadata_of(content: bytes) -> dict[str, str]:
    """Returns what an ONNX model says of itself by name; ``clean_onnx`` has taken it before."""
    model = optional("onnx", extra="onnx").load_model_from_string(content)
    return {entry.key: entry.value for entry in model.metadata_props}


def _output_of(entries: Sequence[Any], name: str, path: Path) -> str:
    """Returns the requested output; raises DataError unless there is exactly one."""
    names = [entry.name for entry in entries]
    if not names:
        raise DataError(f"{path} has no outputs. Export it with the scores as its output.")
    chosen = name or (names[0] if len(names) == 1 else "")
    if chosen not in names:
        listed = ", ".join(f"{entry.name} ({entry.type} {entry.shape})" for entry in entries)
        example = next((entry.name for entry in entries if "float" in entry.type), names[-1])
        wanted = f"no output {name!r:.60}" if name else f"{len(names)} outputs"
        raise DataError(
            f"{path} has {wanted}: {listed}. Name the one to release: {path}:{example}."
        )
    entry = entries[names.index(chosen)]
    if not entry.type.startswith("tensor("):
        raise DataError(
            f"The output {chosen} of {path} is a {entry.type:.80}, not a tensor. Export "
            'scikit-learn models with options={"zipmap": False}.'
        )
    return chosen


def _rebuilt(content: bytes, path: Path) -> bytes:
    """Checks every node and tensor and returns the model without unnecessary parts."""
    onnx = optional("onnx", extra="onnx")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as broken:  # of protobuf
        raise DataError(f"{path} is not an ONNX model: {broken}") from broken
    if model.functions:
        raise DataError(
            f"{path} defines functions ({model.functions[0].name!r:.60}). Inline them: "
            "onnx.save(onnx.inliner.inline_local_functions(onnx.load(path)), path)."
        )
    version = max(
        (opset.version for opset in model.opset_import if opset.domain in _STANDARD), default=0
    )
    if version and version < _MIN_VERSION:
        raise DataError(
            f"{path} uses version {version} of ONNX's operators, whose dropout may be random. "
            f"Export it with opset_version={_MIN_VERSION} or later."
        )
    for graph in _graphs(model.graph, path):
        _check_graph(graph, path, onnx)
    for field in _UNNEEDED:
        model.ClearField(field)
    model.DiscardUnknownFields()  # another version of ONNX may interpret them
    rebuilt: bytes = model.SerializeToString()
    return rebuilt


def _graphs(graph: Any, path: Path) -> Iterator[Any]:
    """Lists a graph and its nested graphs; raises DataError for one in anything but an If."""
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                if inner and not (node.op_type == "If" and attribute.name in _BRANCHES):
                    raise DataError(
                        f"{path} has a graph inside {node.op_type!r:.60}, which only If may have. "
                        "Export the model without control flow."
                    )
                waiting += inner


def _check_graph(graph: Any, path: Path, onnx: Any) -> None:
    """Raises DataError for data in other files and for operators that are not listed."""
    tensors = [*graph.initializer, *_parts(graph.sparse_initializer)]
    for node in graph.node:
        _check_node(node, path)
        for attribute in node.attribute:
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            tensors += [attribute.t, *attribute.tensors, *_parts(sparse)]
    external = onnx.TensorProto.EXTERNAL
    if any(tensor.data_location == external or tensor.external_data for tensor in tensors):
        raise DataError(
            f"{path} has data in other files, which are not read. Save it in one file: "
            "onnx.save(model, path, save_as_external_data=False)."
        )


def _parts(sparse: Iterable[Any]) -> list[Any]:
    return [component for tensor in sparse for component in (tensor.values, tensor.indices)]


def _check_node(node: Any, path: Path) -> None:
    if node.domain not in OPERATORS:
        raise DataError(
            f"{path} calls {node.domain[:60]}.{node.op_type[:60]}: only operators of ai.onnx and "
            "ai.onnx.ml are allowed. Export the model without optimizing it for a runtime."
        )
    if node.op_type in LOOPS:
        raise DataError(
            f"{path} calls {node.op_type}: loops are refused, since they may never end. Export the "
            "model without control flow."
        )
    if node.op_type in RANDOM or _trains(node):
        raise DataError(
            f"{path} calls {node.op_type} in training mode, so answers are random or depend on "
            "their batch. Call model.eval() before exporting it."
        )
    if node.op_type not in OPERATORS[node.domain]:
        raise DataError(
            f"{path} calls {node.op_type[:60]!r}, which is not on the list of allowed operators. "
            "Pass the model as package.module:factory."
        )


def _trains(node: Any) -> bool:
    """Returns whether dropout or batch normalization may be in training mode."""
    if node.op_type == "Dropout":
        return len(node.input) > _MODE and bool(node.input[_MODE])
    return node.op_type == "BatchNormalization" and any(
        attribute.name == "training_mode" and attribute.i for attribute in node.attribute
    )


def _session(content: bytes, name: str) -> Any:
    runtime = optional("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as broken:  # ONNX Runtime's errors have no public base class
        raise DataError(
            f"{name} is not an ONNX model that can be run: {str(broken).splitlines()[0]:.300}"
        ) from broken


def _of_one_size(shape: list[Any]) -> str:
    """Returns how to export a model for any batch size, if it was exported for one."""
    if not (shape and isinstance(shape[0], int)):
        return ""
    return (
        f". It was exported for batches of {shape[0]}. Export it for any size: "
        "torch.onnx.export(model, "
        '(example,), "model.onnx", input_names=["x"], dynamic_axes={"x": {0: "batch"}}, '
        "dynamo=False)"
    )
