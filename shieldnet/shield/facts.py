"""What a shield gives of its model's own attributes: facts that cannot answer, and nothing else.

Libraries ask a model where it lies, what its classes are called and what it reads (Hugging Face's
``pipeline``: ``device``, ``config``, ``input_modalities``). What is given is decided by what an
attribute is, not by its name:

- a torch.device or torch.dtype, stored or computed;
- plain data that the model or its class stores: numbers, words, None, devices, dtypes, and lists,
  tuples, sets and dicts of these, unchanged since the Shield was made: a number that changes when
  the model is asked may be an answer;
- a config of Hugging Face's that holds plain data alone, unchanged as well.

What can run the model (methods, modules), tensors, objects of any other class and what a property
computes are refused. ``can_generate`` of a class that cannot says so; where it can, it is refused.
"""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from shieldnet.shield.bypasses import bypassed, changed_since, no_fact

_NUMBERS_AND_WORDS = (bool, int, float, complex, str, bytes, type(None))
_PLACES = (torch.device, torch.dtype)
_LISTS = (list, tuple, set, frozenset)
_DICTS = (dict, OrderedDict, MappingProxyType)
_MAX_DEPTH = 12
_MISSING = object()


class _NoPlainData(Exception):
    """Something that is more than numbers and words."""


class Facts:
    """Remembers what a model said of itself when its Shield was made."""

    def __init__(self, model: nn.Module) -> None:
        self._at_first = {
            name: content
            for name, held in _stored(_inside(model)).items()
            if not name.startswith("_") and (content := _content(held)) is not None
        }

    def give(self, model: nn.Module, name: str) -> Any:
        """Returns a fact of the model's that ``has`` it; raises BypassError for what is none."""
        held = inspect.getattr_static(_inside(model), name, _MISSING)
        value = getattr(model, name)
        if name == "can_generate" and isinstance(held, classmethod):
            return _cannot_generate if not value() else _refuse_to_generate
        if type(value) in _PLACES:
            return value
        if callable(value):
            raise bypassed(name)
        if held is not value or (content := _content(value)) is None:
            raise no_fact(name, value)
        if self._at_first.get(name) != content:
            raise changed_since(name)
        return value


def _cannot_generate() -> bool:
    return False


def _refuse_to_generate() -> bool:
    raise bypassed("generate")


def has(model: nn.Module, name: str) -> bool:
    """Returns whether a model has an attribute, without computing what a property would."""
    is_stored = inspect.getattr_static(model, name, _MISSING) is not _MISSING
    return is_stored or hasattr(model, name)


def _inside(model: nn.Module) -> nn.Module:
    """Unwraps what torch.compile made, which passes on the attributes of the model in it."""
    compiled = dict(model.named_children()).get("_orig_mod")
    return model if compiled is None else compiled


def _stored(model: nn.Module) -> dict[str, Any]:
    """Lists what a model and its classes hold under a name, not what they compute."""
    stored: dict[str, Any] = {}
    for kind in reversed(type(model).__mro__):
        if kind not in (object, nn.Module):
            stored |= vars(kind)
    return stored | vars(model)


def _content(value: Any) -> object | None:
    """Returns a copy of plain data that can be compared; None for what is more than that."""
    try:
        return _copied(value, _MAX_DEPTH)
    except _NoPlainData:
        return None


def _copied(value: Any, depth: int) -> object:
    kind = type(value)  # of a subclass nobody knows what else it holds
    if kind in (float, complex):
        return kind, repr(value)  # NaN is NaN, and 0.0 is not -0.0
    if kind in _NUMBERS_AND_WORDS or kind in _PLACES:
        return kind, value
    if depth == 0:
        raise _NoPlainData
    if kind in _LISTS:
        inside = [_copied(child, depth - 1) for child in value]
        return kind, frozenset(inside) if kind in (set, frozenset) else tuple(inside)
    if kind in _DICTS:
        return kind, _pairs(value, depth)
    if kind is SimpleNamespace or _is_config(value):
        return kind, _pairs(vars(value), depth)
    raise _NoPlainData


def _pairs(held: Mapping[Any, Any], depth: int) -> object:
    return tuple((_copied(key, depth - 1), _copied(held[key], depth - 1)) for key in held)


def _is_config(value: Any) -> bool:
    """Returns whether an object is one of Hugging Face's configs, which no model stands behind."""
    return not callable(value) and any(
        kind.__module__.partition(".")[0] == "transformers"
        and kind.__name__.endswith(("Config", "ConfigMixin"))
        for kind in type(value).__mro__
    )
