"""What an ONNX model says to those who serve it: names of answers, of the batch, and of its size.

Each function changes a graph in place, after torch's optimizer, which would undo it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Names the outputs of a graph, in their order. Other values of these names get new ones."""
    inputs = {one.name for one in graph.input}
    renamed: dict[str, str] = {}
    for output, name in zip(graph.output, names, strict=True):
        if output.name in inputs or output.name in renamed:  # one value, released twice
            copy = graph.node.add(op_type="Identity", name=f"copy_{name}")
            copy.input.append(output.name)
            copy.output.append(f"copy_{name}")
            output.name = f"copy_{name}"
        renamed[output.name] = name
    renamed |= {name: f"{name}_inside" for name in names if name not in renamed}
    _rename(graph, renamed)


def _rename(graph: Any, renamed: Mapping[str, str]) -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                values[place] = renamed.get(name, name)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, renamed)
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        value.name = renamed.get(value.name, value.name)


def name_sizes(graph: Any, named: Mapping[str, Sequence[int | str]]) -> None:
    """Names the sizes that may change, such as ``batch``, for which torch has made up symbols.

    named: sizes of each input by its name.
    """
    values = (*graph.input, *graph.output, *graph.value_info)
    sizes = [size for value in values for size in value.type.tensor_type.shape.dim]
    symbols = {
        size.dim_param: str(name)
        for one in graph.input
        for size, name in zip(one.type.tensor_type.shape.dim, named[one.name], strict=True)
        if size.dim_param
    }
    for size in sizes:
        if size.dim_param:
            size.dim_param = re.sub(
                r"\w+", lambda word: symbols.get(word[0], word[0]), size.dim_param
            )


def require_rows_of_noise(graph: Any, noise: Mapping[str, tuple[int, ...]]) -> None:
    """Gives each noise input the number of rows of the batch, by an operator that fails otherwise.

    Without it ONNX Runtime spreads one row of noise over the whole batch.
    noise: sizes of the noise inputs by name, without the batch.
    """
    from onnx import helper, numpy_helper  # there, as the graph is an ONNX model

    rows = next((one.name for one in graph.input if one.name not in noise), None)
    if rows is None or not noise:
        return
    _rename(graph, {name: f"{name}_of_rows" for name in noise})
    nodes = [helper.make_node("Shape", [rows], ["batch_of_rows"], start=0, end=1)]
    for name, sizes in noise.items():
        inner, size = f"{name}_of_rows", f"{name}_sizes"
        graph.initializer.append(numpy_helper.from_array(_whole(sizes), size))
        nodes += [
            helper.make_node("Concat", ["batch_of_rows", size], [f"{size}_of_rows"], axis=0),
            helper.make_node("Reshape", [name, f"{size}_of_rows"], [inner], allowzero=1),
        ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _whole(sizes: tuple[int, ...]) -> Any:
    import numpy as np

    return np.array(sizes, dtype=np.int64)
