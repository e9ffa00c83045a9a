"""ONNX models, answered by ONNX Runtime: black boxes without gradients."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet._validate import optional
from shieldnet.errors import AnswerError, DataError
from shieldnet.files.limits import require_bytes, require_file

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class OnnxModel(nn.Module):
    """Answers as an ONNX model does, on the CPU: its first output for its only input.

    It holds the file's bytes and can be sent to other processes.
    """

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__()
        self.name = name
        self.content = content
        self.training = False
        self._session: Any = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Shapes: (rows, ...) -> what the model gives.

        Errors: DataError for inputs that it does not take, AnswerError for what is no tensor.
        """
        session = self.session()
        (entry,) = session.get_inputs()
        dtype = _TYPES.get(entry.type)
        if dtype is None:
            raise DataError(f"{self.name} takes {entry.type}, which no example here is.")
        given = inputs.detach().cpu().to(dtype).contiguous().numpy()
        try:
            found = session.run([session.get_outputs()[0].name], {entry.name: given})[0]
        except Exception as unfit:  # ONNX Runtime's errors have no common base that is public
            shape = tuple(inputs.shape)
            raise DataError(
                f"{self.name} refuses inputs of shape {shape} (it takes {entry.shape}): "
                f"{str(unfit).splitlines()[0]:.200}"
            ) from unfit
        if not hasattr(found, "dtype") or found.dtype.kind not in "fiub":
            raise AnswerError(f"Expected numbers from {self.name}, got {type(found).__name__}.")
        return torch.from_numpy(found.copy())

    def session(self) -> Any:
        """Returns ONNX Runtime's session, made when it is first asked for."""
        if self._session is None:
            self._session = _session(self.content, self.name)
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def __repr__(self) -> str:
        return f"OnnxModel({self.name})"


def load_onnx(path: Path) -> nn.Module:
    """Reads an ONNX model that is whole in its file.

    Errors: DataError for what is no ONNX, has data in other files, or takes more than one input.
    """
    size = require_file(path, "model")
    require_bytes(size, path, "model")
    content = path.read_bytes()
    _require_whole(content, path)
    model = OnnxModel(path.name, content)
    inputs = model.session().get_inputs()
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs)
        raise DataError(f"Expected one input of {path}, got {len(inputs)}: {names}.")
    return model


def _require_whole(content: bytes, path: Path) -> None:
    """Raises DataError for data in other files, whose names could lead anywhere."""
    onnx = optional("onnx", extra="onnx")
    try:
        graph = onnx.load_model_from_string(content)
    except Exception as broken:  # of protobuf
        raise DataError(f"{path} is no ONNX model: {broken}") from broken
    nodes = [node for function in graph.functions for node in function.node]
    if _has_external(graph.graph, onnx) or _any_external(nodes, onnx):
        raise DataError(
            f"{path} keeps data in other files, which are not followed. Save it in one file: "
            "onnx.save(model, path, save_as_external_data=False)."
        )


def _has_external(graph: Any, onnx: Any) -> bool:
    sparse = [part for one in graph.sparse_initializer for part in (one.values, one.indices)]
    external = onnx.TensorProto.EXTERNAL
    if any(tensor.data_location == external for tensor in [*graph.initializer, *sparse]):
        return True
    return _any_external(graph.node, onnx)


def _any_external(nodes: Iterable[Any], onnx: Any) -> bool:
    external = onnx.TensorProto.EXTERNAL
    for attribute in (one for node in nodes for one in node.attribute):
        sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
        tensors = [attribute.t, *attribute.tensors, *(one.values for one in sparse)]
        if any(tensor.data_location == external for tensor in tensors):
            return True
        if any(_has_external(graph, onnx) for graph in [attribute.g, *attribute.graphs]):
            return True
    return False


def _session(content: bytes, name: str) -> Any:
    runtime = optional("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as broken:  # ONNX Runtime's errors have no common base that is public
        raise DataError(
            f"{name} is no ONNX model that can be run: {str(broken).splitlines()[0]:.300}"
        ) from broken
