"""Nested outputs of models: tuples, dicts, dataclasses and ModelOutputs, and their leaves."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from shieldnet.core.errors import AnswerError

Path = tuple[str, ...]
"""The keys, field names and indices that lead to a leaf."""


def is_list_of_dicts(value: Any) -> bool:
    """Returns whether a value is a list of dicts, one per row, as of a detector; may be empty."""
    return type(value) is list and all(isinstance(row, Mapping) for row in value)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Lists the leaves of a nested output with their paths, except None.

    Containers: tuple, namedtuple, list, dict, dataclass and Hugging Face's ModelOutput.
    """
    children = _children(value)
    if children is None:
        if value is not None:
            yield path, value
        return
    for name, child in children:
        yield from leaves(child, (*path, name))


def named_leaves(output: Any) -> dict[Path, Any]:
    """Lists the leaves of a model's output by their unique paths.

    Errors: AnswerError if two have the same name, such as the keys 1 and "1", or a key "a.b" and a
        "b" inside "a"; and for keys that are neither strings nor integers.
    """
    named: dict[str, Path] = {}
    listed: dict[Path, Any] = {}
    for path, leaf in leaves(output):
        name = written(path)
        if name in named:
            raise AnswerError(
                f"The model returned two fields that are both named {name}; nothing was released, "
                "since only one of them would be counted. Give each field a unique name."
            )
        named[name], listed[path] = path, leaf
    _refuse_keys(output)
    return listed


def outline(value: Any) -> object:
    """Describes everything that a released value shows besides numbers and tensor sizes.

    That is types of containers, names in order, lengths, types of leaves, and for tensors the dtype
    and kind of device. Values with the same outline differ only in numbers and sizes.
    """
    children = _children(value)
    if children is None:
        return _leaf_outline(value)
    keys = list(value) if isinstance(value, Mapping) else [name for name, _ in children]
    inside = [
        (type(key), key, outline(child)) for key, (_, child) in zip(keys, children, strict=True)
    ]
    return type(value), tuple(inside)


def form_of_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """Describes the form of a call, without the content of its arguments.

    That is which arguments there are, their types, dtypes of tensors and arrays, and booleans.
    """
    if len(args) == 1 and not kwargs:
        return _form_of(args[0])
    return tuple(map(_form_of, args)), tuple(
        (name, _form_of(kwargs[name])) for name in sorted(kwargs)
    )


def _form_of(value: Any) -> object:
    return value if isinstance(value, bool) else _leaf_outline(value)


def _leaf_outline(leaf: Any) -> object:
    if isinstance(leaf, Tensor):
        return Tensor, leaf.dtype, leaf.device.type
    return (np.ndarray, leaf.dtype) if isinstance(leaf, np.ndarray) else type(leaf)


def _refuse_keys(value: Any) -> None:
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise AnswerError(
                    "Expected strings or integers as keys of a dict, got a key of type "
                    f"{type(key).__name__}; nothing was released. Use a string."
                )
    for _, child in _children(value) or ():
        _refuse_keys(child)


def replaced(
    value: Any,
    change: Callable[[Path, Any], Any],
    path: Path = (),
    *,
    without: Callable[[Path], bool] = lambda path: False,
) -> Any:
    """Returns a new output of the same type, with ``change`` applied to every leaf.

    without: whether to remove a path with everything in it; it is removed from dicts and replaced
    by None elsewhere.
    Errors: AnswerError for a container that cannot be rebuilt from its fields alone.
    """
    if path and without(path):
        return None
    children = _children(value)
    if children is None:
        return None if value is None else change(path, value)
    made = [
        (name, replaced(child, change, (*path, name), without=without)) for name, child in children
    ]
    return _rebuilt(value, made)


def written(path: Path) -> str:
    """Formats a path as users write it: ``logits``, ``decoder.logits``, ``0``."""
    return ".".join(path) or "the output itself"


def _children(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(str(key), value[key]) for key in value]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        return list(zip(names, value, strict=True))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return None


def _rebuilt(value: Any, made: list[tuple[str, Any]]) -> Any:
    kind = type(value)
    items = [child for _, child in made]
    if kind in (tuple, list):
        return kind(items)
    if hasattr(value, "_fields"):
        return kind(*items)
    if is_dataclass(value):  # a ModelOutput is both a mapping and a dataclass
        names = {name for name, _ in made}
        if all(field.init or field.name not in names for field in fields(value)):
            return kind(**dict(made))
    elif kind in (dict, OrderedDict):
        kept = {key: child for key, (_, child) in zip(value, made, strict=True)}
        return kind({key: child for key, child in kept.items() if child is not None})
    raise AnswerError(
        f"The model returned a {kind.__name__}, which cannot be rebuilt from its defended fields. "
        "Return a tensor, tuple, list, dict, dataclass or ModelOutput."
    )
