"""What a checkpoint belongs to: all that a training depends on, part by part, by name."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path

from torch import nn

from shieldnet.privacy.guarantee import Guarantee
from shieldnet.running.fingerprints import fingerprint, versions
from shieldnet.running.origins import is_installed

Identity = Mapping[str, str]
"""Parts of a training by name: plain settings as they are printed, others by a fingerprint."""
_HASHED = "sha256:"
_VERSION, _CODE = "the version of ", "the code of "
WEIGHTS, _ALL = "the starting weights", "all"
_DERIVED = "number of "
_PLAIN = (type(None), bool, int, float, str)
_of_used_code = partial(fingerprint, whole_files=False, setting="checkpoint")


def identity_of(
    model: nn.Module,
    data: str,
    countermeasures: Sequence[object],
    settings: object,
    loss: object,
    known: object,
    derived: Mapping[str, str],
) -> dict[str, str]:
    """Returns all that a training depends on, by name.

    data: hash of the records. known: what is stated of the start. derived: what follows from the
    others. Of code that which the training uses counts, at any depth, and not the rest of its
    files. The part ``all`` covers everything; the others serve to name a difference.
    """
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    everything = (model, data, countermeasures, settings, loss, known, derived)
    return {
        **{_VERSION + name: value for name, value in versions().items()},
        **dict(_code(model)),
        WEIGHTS: _hashed(weights),
        "the data": _HASHED + data,
        **dict(_settings(settings)),
        **{
            f"{type(measure).__name__} {name}": value
            for measure in countermeasures
            for name, value in _settings(measure)
        },
        "countermeasures": ", ".join(type(measure).__name__ for measure in countermeasures),
        "the loss": _hashed(loss),
        "start": known.words if isinstance(known, Guarantee) else repr(known),
        **{_DERIVED + name: value for name, value in derived.items()},
        _ALL: _HASHED + _of_used_code(*everything),
    }


def differences(then: Identity, now: Identity) -> list[str]:
    """Lists in words what differs between two trainings, the causes before what follows of them."""
    parts = dict.fromkeys((*now, *then))
    changed = [part for part in parts if then.get(part) != now.get(part)]
    if not changed:
        return []
    if any(part.startswith(_VERSION) for part in changed):  # every fingerprint changes with it
        changed = [part for part in changed if not _is_hashed(part, then, now)]
    causes = [part for part in changed if not (part == _ALL or part.startswith(_DERIVED))]
    shown = causes or [part for part in changed if part != _ALL]
    if not shown:
        return ["the model, its loss or a countermeasure holds something else than it did"]
    return [_in_words(part, then, now) for part in shown]


def _code(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields the user's classes in a model, with their files."""
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        if not is_installed(kind):
            try:
                file = f" in {Path(inspect.getfile(kind)).name}"
            except (OSError, TypeError):  # made without a file, as in a console
                file = ""
            yield f"{_CODE}{kind.__qualname__}{file}", _hashed(kind)


def _settings(value: object) -> Iterator[tuple[str, str]]:
    """Yields the settings of a dataclass, those of a nested ``Optimization`` by themselves."""
    for field in fields(value) if is_dataclass(value) else ():
        setting = getattr(value, field.name)
        if field.name == "optimization":
            yield from _settings(setting)
        elif isinstance(setting, _PLAIN) or (is_dataclass(setting) and is_installed(type(setting))):
            yield field.name, repr(setting)
        else:
            yield field.name, _hashed(setting)


def _hashed(value: object) -> str:
    return _HASHED + _of_used_code(value)


def _is_hashed(part: str, then: Identity, now: Identity) -> bool:
    shown = then.get(part) or now.get(part) or ""
    return shown.startswith(_HASHED) and not part.startswith(_VERSION)


def _in_words(part: str, then: Identity, now: Identity) -> str:
    if part.startswith(_CODE) and part in then and part in now:
        return f"{part} was edited"
    if part == WEIGHTS:
        return f"{part} (a factory gives the same ones if it calls torch.manual_seed first)"
    if any(side.get(part, "").startswith(_HASHED) for side in (then, now)):
        return part
    return f"{part}: {then.get(part, 'not set')} then, {now.get(part, 'not set')} now"
