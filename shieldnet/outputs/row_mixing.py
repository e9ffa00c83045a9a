"""Refusal of models with layers or operators that mix rows or are random.

These refusals come first and have the most specific messages; ``row_trial`` tests what types and
operators do not show.
"""

from typing import Any

import torch
from torch import fx, nn

from shieldnet.core.errors import AnswerError, ConfigError


def refuse_mixing_layers(model: nn.Module) -> tuple[int, int]:
    """Refuses layers whose answers would be random or depend on the rest of the batch.

    Returns the number of modules, and the number of modules in training mode.
    """
    waiting, seen, training = [model], set(), 0
    while waiting:  # like model.modules(), three times faster
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        training += module.training
        waiting.extend(child for child in module._modules.values() if child is not None)
        kind = type(module)
        suspect = _SUSPECTS.get(kind)
        if suspect is None:
            suspect = _SUSPECTS[kind] = issubclass(kind, _MIXING)
        if suspect and (_mixes_rows(module) or (module.training and _draws_at_random(module))):
            name = next(name for name, candidate in model.named_modules() if candidate is module)
            fix = "Call shield.eval() first." if module.training else "Track its statistics."
            raise AnswerError(
                f"The model's layer {name or 'model'} ({type(module).__name__}) would make "
                f"answers random or let rows of a batch change each other. {fix}"
            )
    return len(seen), training


def refuse_mixing_graphs(model: nn.Module) -> None:
    """Refuses graphs, such as exported programs, with operators that are random or mix rows.

    Errors: ConfigError that names the operator. A graph has one mode, which ``eval()`` does not
    change.
    """
    for name, module in model.named_modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op in ("call_function", "call_method") and _draws_or_mixes(node):
                raise ConfigError(
                    f"The graph of {name or type(model).__name__} calls {_name_of(node.target)} at "
                    f"{node.name}, which makes answers random or lets rows of a batch change each "
                    "other: it was exported in training mode, or is random itself. Call "
                    "model.eval() before torch.export.export or torch.fx.symbolic_trace."
                )


_ON = ("training", "train")
_CHANCES = ("p", "dropout", "dropout_p")
_DRAWING = ("rand", "bernoulli", "normal_", "multinomial", "dropout", "rrelu", "poisson")
_ALWAYS_MIXING = ("batch_norm_with_update", "batch_norm_legit.no_stats")


def _draws_or_mixes(node: fx.Node) -> bool:
    name = _name_of(node.target)
    arguments = _arguments(node)
    if any(arguments.get(on) is False for on in _ON):
        return False
    if "batch_norm" in name:
        is_training = any(arguments.get(on) is True for on in _ON)
        no_statistics = "running_mean" in arguments and arguments["running_mean"] is None
        always = any(operator in name for operator in _ALWAYS_MIXING)
        return is_training or no_statistics or always
    if isinstance(node.target, torch._ops.OpOverload):
        draws = torch.Tag.nondeterministic_seeded in node.target.tags
    else:
        draws = name.startswith(_DRAWING) or "dropout" in name
    chances = [arguments[chance] for chance in _CHANCES if chance in arguments]
    if name.startswith("scaled_dot_product") or "aten.scaled_dot_product" in name:
        return bool(arguments.get("dropout_p", 0.0))
    return draws and (not chances or any(chance != 0 for chance in chances))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Returns the arguments of a call by name, with the defaults of a torch operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(node.kwargs)
    names = [argument.name for argument in node.target._schema.arguments]
    defaults = {
        argument.name: argument.default_value
        for argument in node.target._schema.arguments
        if argument.has_default_value()
    }
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _name_of(target: Any) -> str:
    return str(target) if isinstance(target, str | torch._ops.OpOverload) else target.__name__


_MIXING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RNNBase,
    nn.MultiheadAttention,
)
_SUSPECTS: dict[type[nn.Module], bool] = {}


def _mixes_rows(module: nn.Module) -> bool:
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm and (module.training or module.running_mean is None)


def _draws_at_random(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0
