"""Where the answer sits in what a model returns: a tuple, a dict, a dataclass, a ModelOutput."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from shieldnet.errors import AnswerError

Path = tuple[str, ...]
"""The keys, field names and places that lead to a leaf."""


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Lists what is in a nested output and is no container, with its path; None is left out.

    Containers: tuple, namedtuple, list, dict, dataclass and Hugging Face's ModelOutput.
    """
    children = _children(value)
    if children is None:
        if value is not None:
            yield path, value
        return
    for name, child in children:
        yield from leaves(child, (*path, name))


def replaced(
    value: Any,
    change: Callable[[Path, Any], Any],
    path: Path = (),
    *,
    without: Callable[[Path], bool] = lambda path: False,
) -> Any:
    """Returns a new output of the same type whose leaves are what ``change`` makes of them.

    without: says of a path whether it is left out with all that is inside. What is left out leaves
    a dict, and is None in anything else.
    Errors: AnswerError for a container that cannot be built again from its fields alone.
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
    """Writes a path as users name it: ``logits``, ``decoder.logits``, ``0``."""
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
        f"The model returned a {kind.__name__}, which cannot be built again without what is not "
        "defended. Return a tensor, tuple, list, dict, dataclass or ModelOutput."
    )
