"""Where in a model's output the answer is, what else is there, and what form it has."""

from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shieldnet.core.errors import AnswerError
from shieldnet.outputs.mistaken import EMBEDDING_NAMES
from shieldnet.outputs.nested import (
    Path,
    is_list_of_dicts,
    leaves,
    named_leaves,
    outline,
    written,
)
from shieldnet.shield.heads import line_for_embeddings, line_for_fields
from shieldnet.shield.settings import ShieldSettings, named_by


def place_of(output: Any, settings: ShieldSettings) -> Path:
    """Finds the answer in an output, or says what is there; raises AnswerError."""
    fields = dict(leaves(output))
    named: list[Path] = []
    if settings.main is not None:
        fitting = [path for path in fields if written(path) == settings.main]
    else:
        kinds = (settings.chain.layout.kind, settings.chain.layout.row_kind)
        named = [path for path in fields if path and path[-1] in kinds]
        fitting = named or [
            path
            for path, leaf in fields.items()
            if isinstance(leaf, Tensor) and not named_by(path, (*settings.others, *settings.drop))
        ]
    if settings.is_guess and not named:
        _refuse_embeddings(fields, fitting, settings)
    if len(fitting) != 1:
        wanted = settings.main or "the answer"
        there = [written(path) for path in fields]
        raise AnswerError(
            f"Expected to find {wanted} in what the model returned ({type(output).__name__}); "
            f"it holds {', '.join(there) or 'nothing'}. {_named_in_a_line(fields, settings)}"
        )
    return fitting[0]


def _named_in_a_line(fields: dict[Path, Any], settings: ShieldSettings) -> str:
    """Names the line that answers what a model returned."""
    line = line_for_fields(fields, settings)
    if line is not None:
        return f"Name it, or each where several are scores of classes, and drop the rest: {line}."
    first = next((written(path) for path in fields if path), "logits")
    return f"Name it, such as outputs={{{first!r}: {settings.chain.layout.kind!r}}}."


def _refuse_embeddings(
    fields: dict[Path, Any], fitting: list[Path], settings: ShieldSettings
) -> None:
    """Raises AnswerError where all that could be the answer is called an embedding."""
    if not fitting or not all(path and path[-1] in EMBEDDING_NAMES for path in fitting):
        return
    flat = [path for path in fitting if fields[path].dim() == 2]
    path = (flat or fitting)[0]
    line = line_for_embeddings(path, fields, fields[path], settings)
    raise AnswerError(
        f"The model returned {written(path)}, which holds embeddings, not scores of classes; "
        f"nothing was released. Say {line}, or insist with outputs='logits'."
    )


def answer_of(released: Any, settings: ShieldSettings) -> Tensor:
    """Returns the answer in an output, or in what was released of it."""
    if isinstance(released, Tensor):
        return released
    if is_list_of_dicts(released):
        raise AnswerError(
            "A detector's boxes are no rows of answers. An audit reads them beside the true boxes: "
            "members=(images, targets), a dict of boxes and labels for each image."
        )
    answer: Tensor = named_leaves(released)[place_of(released, settings)]
    return answer


def refuse_undefended(output: Any, main: Path, settings: ShieldSettings) -> None:
    """Raises AnswerError for fields that are neither defended nor dropped, or not there."""
    require_named(output, settings)
    fields = list(leaves(output))
    open_fields: dict[str, list[str]] = {}
    for path, leaf in fields:
        if settings.is_dropped(path):
            continue
        if path != main and named_by(path, settings.others) is None:
            open_fields.setdefault(path[0], []).append(type(leaf).__name__)
    if open_fields:
        listed = ", ".join(
            f"{name} ({kinds[0]}{'' if len(kinds) == 1 else f' x {len(kinds)}'})"
            for name, kinds in open_fields.items()
        )
        line = line_for_fields(dict(fields), settings, main)
        raise AnswerError(
            f"The model also returns {listed}, which no defense covers; nothing was released. "
            f"Leave them out with drop={tuple(open_fields)!r}, or give each that can have them its "
            f"own defenses: {line}."
        )


def require_named(output: Any, settings: ShieldSettings) -> None:
    """Raises AnswerError for a named head that is not there: it would be lost unnoticed."""
    paths = [path for path, _ in leaves(output)]
    for name, chain in settings.others.items():
        if chain is None or any(named_by(path, (name,)) for path in paths):
            continue
        there = [written(path) for path in paths]
        meant = get_close_matches(name, there, 1)
        raise AnswerError(
            f"The model returned no {name}, which outputs or also names; it returned "
            f"{', '.join(there)}. {f'Do you mean {meant[0]}? ' if meant else ''}Nothing was "
            "released."
        )


def require_rows(path: Path, leaf: Any, rows: int) -> None:
    """Raises AnswerError for a field without a row for each answer."""
    if isinstance(leaf, Tensor) and (leaf.dim() == 0 or len(leaf) != rows):
        name = written(path)
        raise AnswerError(
            f"Expected {name} to have a row for each of the {rows} answers, got shape "
            f"{tuple(leaf.shape)}: its privacy cost could not be told. Leave it out with "
            f"drop=({name!r},), or release it as it is with also={{{name!r}: ()}}, for an "
            "infinite cost."
        )


def counted_rows(output: Any, settings: ShieldSettings) -> list[Tensor]:
    """Lists the tensors of an output whose every row has a privacy cost of its own."""
    if isinstance(output, Tensor) and settings.main is None:
        return [output]
    if is_list_of_dicts(output):
        return []  # a box is no row of the batch
    main = place_of(output, settings)
    names = {name for name, chain in settings.others.items() if chain is not None}
    return [
        leaf
        for path, leaf in leaves(output)
        if isinstance(leaf, Tensor)
        and (path == main or (not settings.is_dropped(path) and named_by(path, names)))
    ]


def copy_of(leaf: Any) -> Any:
    """Copies what is released as it is: a view of more, or of what somebody else holds, is more."""
    if isinstance(leaf, Tensor):
        plain = leaf.detach().as_subclass(Tensor)
        is_dense = plain.layout is torch.strided
        return plain.clone(memory_format=torch.contiguous_format) if is_dense else plain.clone()
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


class AnswerForms:
    """Holds answers to the form of the first one: types and names of fields are answers, too."""

    def __init__(self) -> None:
        self._first: dict[object, object] = {}

    def require_same(self, call: object, released: Any) -> None:
        """Raises AnswerError for an answer of another form than the first to this form of call."""
        form = outline(released)
        first = self._first.setdefault(call, form)
        if first != form:
            raise AnswerError(
                "Expected an answer of the form of the first one, as types and names of fields "
                f"are answers too; nothing was released. {_difference(first, form)} Have the "
                "model return one form, leave out what comes and goes with drop=(...), or make "
                "one Shield for each form."
            )

    def require_same_of_each(self, call: object, images: list[Any]) -> list[Any]:
        """Holds each answer of a list to one form, however many there are; returns the list.

        Errors: AnswerError, also where an answer to this form of call was no list before.
        """
        if self._first.setdefault(call, list) is not list:
            self.require_same(call, images)
        for image in images:
            self.require_same((call, "each of a list"), image)
        return images

    def forget(self) -> None:
        """Takes the next answers as the first ones: the owner has moved or cast the model."""
        self._first.clear()


def _difference(first: object, shown: object) -> str:
    """Says in what an answer's form differs from that of the first."""
    names = [", ".join(sorted(_names(form))) for form in (first, shown)]
    if names[0] != names[1]:
        return f"The first had {names[0] or 'no fields'}, this one has {names[1] or 'no fields'}."
    return f"The first was {_form_words(first)}, this one is {_form_words(shown)}."


def _names(form: Any, path: Path = ()) -> list[str]:
    if isinstance(form, tuple) and len(form) == 2 and isinstance(form[1], tuple):
        return [name for _, key, inside in form[1] for name in _names(inside, (*path, str(key)))]
    return [written(path)] if path and form is not type(None) else []


def _form_words(form: Any) -> str:
    if not isinstance(form, tuple):
        return str(form.__name__)
    if len(form) == 2 and isinstance(form[1], tuple):
        inside = ", ".join(f"{key}: {_form_words(child)}" for _, key, child in form[1])
        return f"{form[0].__name__}({inside})"
    return f"{form[0].__name__} {form[1]}"
