"""A hardened folder as a version of a model in Triton Inference Server's model repository.

A repository has a folder for each model, in it ``config.pbtxt`` and a folder for each version. The
version is the hardened folder itself, of which Triton reads ``model.onnx`` and nothing else.
"""

from pathlib import Path

from shieldnet.core.errors import ConfigError
from shieldnet.shipping.description import Description, GraphFacts, TensorFacts
from shieldnet.shipping.graph_files import Graph
from shieldnet.shipping.parts import MODEL, ONNX, TRITON_VERSION

CONFIG = "config.pbtxt"
_MAX_BATCH = 1024
_TYPES = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


def write_config(model: Path) -> Path:
    """Writes ``config.pbtxt`` for the hardened folder ``model/1``; returns its path.

    model: the model's folder in the repository, whose name is the model's.
    Errors: ConfigError for a shield with noise and for inputs or outputs without a batch axis.
    """
    described = Description.read((model / TRITON_VERSION / MODEL).read_bytes())
    path = model / CONFIG
    path.write_text(config_of(model.name, described.graphs[ONNX]), encoding="utf-8")
    return path


def require_servable(graph: GraphFacts | Graph) -> None:
    """Raises ConfigError for a graph that Triton cannot batch, or whose noise clients would feed.

    Triton takes every input of a model from the client.
    """
    if graph.noise:
        raise ConfigError(
            f"The shield draws noise, and Triton would take it ({', '.join(graph.noise)}) from the "
            "client, who could feed zeros. Serve the graph from Python instead, where "
            "shieldnet.runtime draws it, or choose a shield without noise."
        )
    for tensor in (*graph.inputs, *graph.outputs):
        if not tensor.shape or tensor.shape[0] is not None or tensor.dtype not in _TYPES:
            raise ConfigError(
                f"Triton batches along the first axis of every input and output, of numbers in "
                f"{', '.join(_TYPES)}; {tensor.name} is {tensor.dtype} of shape {tensor.shape}."
            )


def config_of(name: str, graph: GraphFacts) -> str:
    """Returns the text of ``config.pbtxt``.

    Requests of several clients are batched: a hardened row does not depend on the others.
    """
    require_servable(graph)
    inputs = ",\n".join(_tensor(tensor) for tensor in graph.inputs)
    outputs = ",\n".join(_tensor(tensor) for tensor in graph.outputs)
    return (
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {_MAX_BATCH}\n'
        f"input [\n{inputs}\n]\noutput [\n{outputs}\n]\ndynamic_batching {{ }}\n"
    )


def _tensor(tensor: TensorFacts) -> str:
    sizes = [-1 if size is None else size for size in tensor.shape[1:]]
    dims = f"dims: [ {', '.join(map(str, sizes)) or 1} ]"
    scalar = "" if sizes else " reshape: { shape: [ ] }"  # one number for each row
    name = tensor.name.replace("\\", "\\\\").replace('"', '\\"')
    return f'  {{ name: "{name}" data_type: {_TYPES[tensor.dtype]} {dims}{scalar} }}'
