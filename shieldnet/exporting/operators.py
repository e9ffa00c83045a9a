"""The operators that a graph may have: torch's own, without state, without chance."""

from collections.abc import Iterator

import torch
from torch import fx
from torch.export import ExportedProgram

from shieldnet.core.errors import ConfigError
from shieldnet.outputs.row_mixing import refuse_mixing_graphs

_NAMESPACES = ("aten",)
_HIGHER_ORDER = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
_OF_SIZES = ("_operator", "math")


def require_plain_operators(program: ExportedProgram) -> None:
    """Raises ConfigError for a graph that keeps state, draws noise or has operators of others.

    Allowed are torch's own (``aten``), arithmetic of sizes, and blocks that set gradients or
    autocast. A branch or loop (``torch.cond``) decides for all rows at once and is refused.
    """
    signature = program.graph_signature
    changed = {
        **signature.buffers_to_mutate,
        **signature.user_inputs_to_mutate,
        **signature.parameters_to_mutate,
    }
    if changed:
        raise ConfigError(
            f"The model writes to {', '.join(sorted(changed.values()))} while it answers, so that "
            "one caller's rows would change the next one's answer. Do not assign it in forward."
        )
    foreign = sorted(set(_foreign(program.graph_module)))
    if foreign:
        raise ConfigError(
            f"The model calls {', '.join(foreign)}, and a graph has torch's plain tensor operators "
            "only. Write a branch as torch.where, and another library's operator in torch's; or "
            "serve this shield from Python."
        )
    refuse_mixing_graphs(program.graph_module)


def in_plain_operators(program: ExportedProgram) -> ExportedProgram:
    """Replaces operators of other libraries by torch's own where they are made of these."""
    foreign = {
        node.target
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and not _is_plain(node.target)
    }
    if not foreign:
        return program
    known = torch.export.default_decompositions()
    plain: ExportedProgram = program.run_decompositions(
        {one: known[one] for one in foreign if one in known}
    )
    return plain


def _foreign(module: fx.GraphModule) -> Iterator[str]:
    for graph in module.modules():
        if isinstance(graph, fx.GraphModule):
            for node in graph.graph.nodes:
                if node.op in ("call_function", "call_method") and not _is_plain(node.target):
                    yield str(node.target)


def _is_plain(target: object) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in _NAMESPACES
    if isinstance(target, torch._ops.HigherOrderOperator):
        return target.name() in _HIGHER_ORDER
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", "")
    return module in _OF_SIZES or (module == "torch" and name.lstrip("_").startswith("sym_"))
