"""Captures one record's computation as a graph of tensor operators that sees no other record.

A forward pass in Python may read its batch, count its calls, draw at random or store what it saw.
A graph cannot: it is traced once, on tensors without values, for a batch of one, and its result for
a record depends only on the graph's arguments.
"""

import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize, vmap
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from shieldnet.core.checks import unwarned
from shieldnet.core.errors import ShieldnetError
from shieldnet.core.mapping import quiet_mapping

_ATEN = torch.ops.aten
_ROWS = 256
_NAMESPACES = frozenset(["aten", "prims"])
_IDENTITIES = frozenset([_ATEN.detach.default, _ATEN.alias.default, _ATEN.lift_fresh_copy.default])
_CONTIGUOUS_ONLY = {_ATEN.native_group_norm.default: 1, _ATEN.native_group_norm_backward.default: 2}
"""Operators that refuse a view that is not contiguous, with the number of first arguments."""
_CONTIGUOUS: dict[str, Any] = {"memory_format": torch.contiguous_format}


class NotCaptured(Exception):
    """Raised if a computation cannot be traced; this says nothing about its privacy."""


def capture(function: Callable[..., Any], arguments: Sequence[Any]) -> GraphModule:
    """Traces a function of tensors and returns it as a graph without side effects.

    The graph takes the tensors among the arguments as separate arguments and returns a list of
    tensors. arguments: tensors, lists and dicts of tensors; only shapes and dtypes are used, so the
    graph depends on no value. The function may take gradients. Its writes into arguments or held
    tensors are dropped: the graph uses their original values. Random operators stay random.
    Errors: NotCaptured, with the reason and the fix, if the function reads a value (``if``,
    ``.item()``, numpy) or is not a graph of tensor operators. Other shieldnet errors pass through.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils import _pytree as pytree

    _require_tensors(arguments)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _traceable(), mode, torch.enable_grad():
            shapes = pytree.tree_map_only(Tensor, _empty, list(arguments))
            graph = make_fx(function, _allow_non_fake_inputs=True)(*shapes)
            again = make_fx(function, _allow_non_fake_inputs=True)(*shapes)
            if graph.code != again.code:
                raise NotCaptured(
                    "it computes something different on each call: it counts its calls, or draws "
                    "with Python's random or numpy. Draw with torch"
                )
            pure = functionalize(graph, remove="mutations")
            graph = make_fx(pure, _allow_non_fake_inputs=True)(*shapes)
    except (ShieldnetError, NotCaptured):
        raise
    except Exception as untraceable:  # from user code, or from any of torch's tracers
        raise NotCaptured(_reason(untraceable)) from untraceable
    return _pure(graph)


def map_records(
    function: Callable[..., Tensor], held: dict[str, Tensor], *columns: Tensor
) -> Tensor:
    """Applies a function to every record separately, by a graph. Shapes: on the CPU.

    function: takes weights and buffers, and one record's row of each column (records, ...).
    Errors: NotCaptured as for ``capture``, and if the function is random.
    """
    device = next(iter(held.values())).device
    example = [column[0].to(device) for column in columns]
    graph = capture(lambda *arguments: [function(*arguments)], (held, *example))
    if is_random(graph):
        raise NotCaptured("its answers are random")
    # Not __call__, which would run global hooks that may store what they see.
    mapped = vmap(graph.forward, in_dims=(*[None] * len(held), *[0] * len(columns)))
    with torch.no_grad(), quiet_mapping():
        results = [
            mapped(*held.values(), *(rows.to(device) for rows in batch))[0].cpu()
            for batch in zip(*(column.split(_ROWS) for column in columns), strict=True)
        ]
    return torch.cat(results)


def is_random(graph: GraphModule) -> bool:
    """Returns whether the graph has random operators."""
    return bool(_random_nodes(graph))


def with_draws_given(graph: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Splits a random graph into one that returns its draws and one that takes them.

    The second takes the arguments of the first, followed by the draws, so that one record and many
    can use the same draws.
    """
    drawing, computing = _copied(graph), _copied(graph)
    output = next(node for node in drawing.graph.nodes if node.op == "output")
    output.args = (_random_nodes(drawing),)
    last = [node for node in computing.graph.nodes if node.op == "placeholder"][-1]
    for number, node in enumerate(_random_nodes(computing)):
        with computing.graph.inserting_after(last):
            last = computing.graph.placeholder(f"draw_{number}")
        node.replace_all_uses_with(last)
        computing.graph.erase_node(node)
    for half in (drawing, computing):
        half.graph.eliminate_dead_code()
        half.recompile()
    return drawing, computing


def _copied(graph: GraphModule) -> GraphModule:
    made = Graph()
    made.output(made.graph_copy(graph.graph, {}))
    return GraphModule(graph, made)


def _random_nodes(graph: GraphModule) -> list[Node]:
    """Lists the nodes whose operators torch tags as random."""
    return [
        node
        for node in graph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    ]


@contextmanager
def _traceable() -> Any:
    """Selects implementations of attention and recurrence that consist of plain operators."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with unwarned("TF32 acceleration"), ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )


def _pure(graph: GraphModule) -> GraphModule:
    """Removes writes into arguments and dead nodes."""
    for node in list(graph.graph.nodes):
        target = node.target
        if node.op == "call_function" and not _is_plain(target):
            raise NotCaptured(
                f"it calls {target}, which is not a built-in torch operator and may store data"
            )
        if node.op == "get_attr" and not _is_tensor(getattr(graph, node.target)):
            held = type(getattr(graph, node.target)).__name__
            raise NotCaptured(f"it uses a stateful {held}, such as a torch.Generator")
        if target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
            _require_argument(node)
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        if node.op == "get_attr":  # uses the original value
            constant = getattr(graph, node.target).detach().clone()
            delattr(graph, node.target)
            graph.register_buffer(node.target, constant)
    _copy_views(graph)
    graph.graph.set_codegen(CodeGen())  # flat lists of arguments and results
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _copy_views(graph: GraphModule) -> None:
    """Copies what is read by operators that take no view of a part of each row.

    A part of a single row is contiguous and stays a view when it is traced; parts of many rows are
    not.
    """
    for node in list(graph.graph.nodes):
        for value in node.args[: _CONTIGUOUS_ONLY.get(node.target, 0)]:
            with graph.graph.inserting_before(node):
                copied = graph.graph.call_function(_ATEN.clone.default, (value,), _CONTIGUOUS)
            node.replace_input_with(value, copied)


def _is_plain(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in _NAMESPACES
    return target is operator.getitem


def _is_tensor(value: object) -> bool:
    """Returns whether a value is a plain tensor: code of a subclass would see every record."""
    return type(value) in (Tensor, nn.Parameter, nn.Buffer)


def _require_tensors(arguments: Sequence[Any]) -> None:
    from torch.utils import _pytree as pytree

    for value in pytree.tree_leaves(list(arguments)):
        if isinstance(value, Tensor) and not _is_tensor(value):
            raise NotCaptured(
                f"a weight, buffer or record is a {type(value).__name__}, whose code would see "
                "every record. Make it a plain tensor"
            )


def _require_argument(node: Node) -> None:
    """Raises NotCaptured for a write into anything but the function's arguments."""
    into = node.args[0]
    if node.target is not _ATEN.copy_.default or not isinstance(into, Node):
        raise NotCaptured(f"the operator {node.target} writes into its argument")
    if into.op not in ("placeholder", "get_attr"):
        raise NotCaptured(f"the operator {node.target} writes into {into.name}")


_VALUES = (
    "it reads the value of a tensor while it is traced (if, while, .item(), .tolist(), numpy, "
    "boolean indexing). Use tensor operators instead, such as torch.where"
)
_REASONS = (
    (
        ("pack_padded_sequence", "_pack_padded", "lengths"),
        "it packs sequences, whose lengths are values. Pass padded sequences and mask them; "
        "opacus.layers.DPLSTM, DPGRU and DPRNN work unchanged",
    ),
    (("DataDependent", "GuardOnDataDependent", "item()", "_local_scalar", "nonzero"), _VALUES),
    (("DynamicOutputShape", "data-dependent", "data dependent", ".numpy()", "NumPy"), _VALUES),
)


def _reason(failed: Exception) -> str:
    text = f"{type(failed).__name__}: {failed}"
    for signs, reason in _REASONS:
        if any(sign in text for sign in signs):
            return reason
    return f"tracing it failed with {text.splitlines()[0][:300]}"
