"""Whether a folder's graphs are of its shield, and answer as it does."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.core.errors import AnswerError, VerificationFailed
from shieldnet.exporting.line import Line
from shieldnet.exporting.programs import tensors_of
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.description import GraphFacts, TensorFacts
from shieldnet.shipping.graph_files import Graph, count_of, read_graph
from shieldnet.shipping.parts import MODEL, SHIELD
from shieldnet.shipping.verification import Checked

_ROWS = 16
_MAX_NUMBERS = 2**27
_NEAR = 1e-4  # of the answers' range: another runtime adds floats in another order
_ENOUGH = 0.75  # of the rows: a sum near a tick may be rounded otherwise in another runtime


class _Unasked(Exception):
    """Says why a graph and its shield could not be asked the same."""


def check_graphs(contents: Contents, network: nn.Module | None, example: Any = None) -> Checked:
    """Checks that the graphs are of the folder's shield and, with the model, answer as it does.

    network: the model itself, None if it was not made. example: inputs; generated ones if None.
    """
    held = {
        name: facts
        for name, facts in sorted(contents.description.graphs.items())
        if facts.holds == "shield"
    }
    if not held:
        return Checked("graphs", "pass", "there is none, as described")
    names = ", ".join(held)
    graphs = {name: _read(contents, name, facts) for name, facts in held.items()}
    if network is None:
        fix = contents.description.source or "package.module:factory"
        words = f"{names}: only read and hashed, not asked (--model {fix} asks)"
        return Checked("graphs", "not checked", words)
    inputs = "generated inputs" if example is None else "the example"
    try:
        for name, graph in graphs.items():
            _require_same_answers(contents, network, name, graph, example)
    except _Unasked as unasked:
        words = f"{names}: only read and hashed, not asked: {unasked}"
        return Checked("graphs", "not checked", words)
    return Checked("graphs", "pass", f"{names}: answers {inputs} as the shield does")


def facts_of(name: str, content: bytes, weights: str, shield: str) -> GraphFacts:
    """Reads what ``model.json`` says of a graph. weights, shield: hashes of what is in it."""
    return _facts(read_graph(name, content), weights, shield)


def _facts(graph: Graph, weights: str, shield: str) -> GraphFacts:
    return GraphFacts("shield", weights, shield, graph.inputs, graph.outputs, graph.noise)


def _read(contents: Contents, name: str, facts: GraphFacts) -> Graph:
    """Reads a graph, and holds what it and ``model.json`` say of it to the folder's shield."""
    described, settings = contents.description, contents.settings
    if name not in contents.files:
        raise VerificationFailed(f"{MODEL} describes {name}, and the folder has none.")
    graph = read_graph(name, contents.files[name])
    if graph.said["shield"] != settings.describe(described.kind):
        raise VerificationFailed(f"{name} says that it holds another shield than {SHIELD}.")
    if facts != _facts(graph, described.weights or "", settings.digest()):
        raise VerificationFailed(
            f"{MODEL} says of {name} other weights, another shield, or other inputs and outputs "
            "than there are."
        )
    return graph


def _require_same_answers(
    contents: Contents, network: nn.Module, name: str, graph: Graph, example: Any
) -> None:
    """Raises VerificationFailed where a graph does not answer as the shield does.

    Errors: _Unasked for inputs that the model cannot read or the shield refuses.
    """
    given = _generated(contents, graph) if example is None else example
    try:
        line = Line(contents.shield_around(network), given)
        rows = line.example.rows
        inputs = {**line.example.given, **{one.name: one.draw(rows) for one in line.noise}}
        with torch.no_grad():
            wanted = tensors_of(line(**inputs))
    except AnswerError as refused:
        raise _Unasked(f"the shield refuses the inputs: {refused}") from refused
    except Exception as unread:  # of the user's model, which may raise anything
        first = str(unread).partition("\n")[0]
        raise _Unasked(f"the model cannot read the inputs: {first:.200}") from unread
    laws = {one.name: one.law for one in line.noise}
    if json.dumps(laws, sort_keys=True) != json.dumps(graph.said["noise"], sort_keys=True):
        raise VerificationFailed(f"{name} draws its noise by other laws than {SHIELD} says.")
    if not any(_is_answer(answer).sum() >= rows / 2 for answer in wanted):
        raise _Unasked("the shield refuses the inputs")
    try:
        answers = graph.ask(inputs)
    except Exception as unfit:  # of a runtime, whose errors have no common base
        first = str(unfit).partition("\n")[0]
        raise VerificationFailed(f"{name} cannot be asked: {first:.200}") from unfit
    if len(wanted) != len(answers) or not all(map(_alike, wanted, answers)):
        raise VerificationFailed(
            f"{name} does not answer as the shield does: it holds another model, another shield or "
            "none. Write it again with --graph (sn.export)."
        )


def _generated(contents: Contents, graph: Graph) -> Mapping[str, Tensor]:
    """Makes inputs of the described shapes: the same ones every time, without any data."""
    taken = [one for one in graph.inputs if one.name not in graph.noise]
    described = contents.description.inputs or taken
    if sum(count_of(one, _ROWS) for one in described) > _MAX_NUMBERS:
        raise _Unasked("the described inputs are too large")
    return {one.name: _numbers(one) for one in described}


def _numbers(tensor: TensorFacts) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = [_ROWS if size is None else size for size in tensor.shape]
    dtype = getattr(torch, tensor.dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex:
        raise _Unasked(f"{tensor.name} is of the type {tensor.dtype}")
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _is_answer(answer: Tensor) -> Tensor:
    """Says which rows were answered. Shapes: (rows, ...) -> (rows,)."""
    marked = answer.isnan() if answer.is_floating_point() else answer < 0
    return ~marked.reshape(len(answer), -1).any(1)


def _alike(wanted: Tensor, answer: Tensor) -> bool:
    if wanted.shape != answer.shape or wanted.dtype != answer.dtype:
        return False
    if not wanted.is_floating_point():
        near = wanted == answer
    else:
        real = wanted[wanted.isfinite()].double()
        span = float(real.max() - real.min() + 1e-2 * real.abs().max()) if real.numel() else 0.0
        near = torch.isclose(answer, wanted, rtol=0.0, atol=_NEAR * span, equal_nan=True)
    return bool(near.reshape(len(near), -1).all(1).double().mean() >= _ENOUGH)
