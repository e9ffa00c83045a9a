"""Reading and writing weights in files, without unpickling."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from shieldnet.core.checks import optional
from shieldnet.core.errors import DataError
from shieldnet.files.documents import MAX_BYTES
from shieldnet.files.group_norms import (
    Norms,
    batch_norm_hint,
    metadata_of,
    norms_in,
    put_norms,
    unlike,
)
from shieldnet.files.recognition import advice, recognized
from shieldnet.files.sizes import require_bytes, require_file

_log = logging.getLogger(__name__)

_COMPILED = "_orig_mod."
_WRAPPERS = {
    _COMPILED: "torch.compile",
    "_module.": "Opacus",
    "module.": "DataParallel",
    "model.": "Lightning",
}
"""Prefixes that wrappers add to the names of weights."""
_MAX_SHOWN_NAMES = 3  # in a message


class State(dict[str, Tensor]):
    """Holds tensors by name, and the GroupNorm layers that their file records."""

    norms: Norms = MappingProxyType({})


def load_weights(model: nn.Module, path: str | Path, name: str = "") -> nn.Module:
    """Loads a file's weights into a model, and returns it.

    Tied weights may occur in the file once or several times. The prefixes of ``torch.compile`` and
    ``DataParallel`` are removed, with a warning, if all names have them. A GroupNorm that the file
    records, as ``finetune(fix=True)`` puts them in, replaces a BatchNorm of the same name, which is
    logged. path: of a .safetensors file, or of a .pt file, which is read with
    ``weights_only=True``. name: the model's name, for messages; by default that of its class.
    Errors: DataError for a file with more than weights, and for weights that do not fit the model:
        missing or unknown names, other shapes, or a dtype that loses digits. The model is then as
        it was.
    """
    path, name = Path(path), name or type(model).__name__
    state = read_weights(path)
    with _layers_kept_on_failure(model):
        _put_norms(model, state, path, name)
        own = model.state_dict(keep_vars=True)
        _put(model, _without_prefix(state, own, path), path, name)
    return model


@contextmanager
def _layers_kept_on_failure(model: nn.Module) -> Iterator[None]:
    """Puts the layers back that were replaced where weights turn out not to fit."""
    # A layer that has two names in one module is among its named_children once.
    before = [(module, dict(module._modules)) for module in model.modules()]
    try:
        yield
    except Exception:
        for module, children in before:
            module._modules.update(children)
        raise


def load_exactly(model: nn.Module, state: dict[str, Tensor], source: object, name: str) -> None:
    """Puts weights into a model that has the same names, shapes and types, tied ones included.

    source and name: of the weights and of the model, for messages. Errors: DataError otherwise.
    """
    with _layers_kept_on_failure(model):
        _put_norms(model, state, source, name)
        own = model.state_dict(keep_vars=True)
        faults = [
            f"{key} is {tensor.dtype}, the model's is {own[key].dtype}"
            for key, tensor in state.items()
            if isinstance(own.get(key), Tensor) and own[key].dtype != tensor.dtype
        ]
        if missing := [key for key in own if key not in state]:
            faults.insert(0, f"it lacks {_listed(missing)}")
        if faults:
            raise _unfit(source, name, "; ".join(faults[:_MAX_SHOWN_NAMES]))
        _put(model, state, source, name)


def _put_norms(model: nn.Module, state: Mapping[str, Tensor], source: object, name: str) -> None:
    """Puts the GroupNorm layers into a model that the weights were trained with."""
    norms = state.norms if isinstance(state, State) else {}
    for replaced in put_norms(model, norms):
        _log.info("%s: %s, as it was trained.", source, replaced)
    if faults := list(unlike(model, norms)):
        raise _unfit(source, name, "; ".join(faults[:_MAX_SHOWN_NAMES]))


def _put(model: nn.Module, state: dict[str, Tensor], source: object, name: str) -> None:
    own = model.state_dict(keep_vars=True)
    state = _with_tied(state, own, source)
    if faults := list(_faults(state, own)):
        hint = batch_norm_hint(model, [key for key in own if key not in state])
        raise _unfit(source, name, "; ".join(faults) + hint)
    try:
        model.load_state_dict(state)
    except RuntimeError as unfit:
        raise _unfit(source, name, str(unfit)) from unfit


def _unfit(source: object, name: str, reason: str) -> DataError:
    return DataError(f"{source} does not fit the model of {name}: {reason.rstrip('.')}.")


def read_weights(path: Path) -> State:
    """Reads tensors by name from .safetensors, or from a .pt file without unpickling it.

    Errors: DataError for anything else, with what the file is and how to use it.
    """
    require_bytes(require_file(path, "weights"), path, "weights")
    if path.suffix == ".safetensors":
        return _safetensors("load_file", path, path, _header(path))
    contents = recognized(path)
    if contents.kind != "state_dict":
        raise DataError(f"{path} {advice(contents, path, as_weights=True)}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as broken:  # torch raises many kinds; recognition read no tensor's bytes
        raise DataError(f"{path} is damaged: {broken}") from broken
    return State({str(key): value.detach() for key, value in loaded.items()})


def parse_weights(content: bytes, source: object) -> State:
    """Reads tensors by name from the bytes of a .safetensors file.

    source: the file, for messages. Errors: DataError for anything else.
    """
    return _safetensors("load", content, source, content)


def _safetensors(function: str, given: Path | bytes, source: object, header: bytes) -> State:
    reader = optional("safetensors.torch", extra="cli")
    try:
        state = State(getattr(reader, function)(given))
    except Exception as broken:  # its errors have no common base
        raise DataError(f"{source} is not a valid safetensors file: {broken}") from broken
    state.norms = norms_in(header, source)
    return state


def _header(path: Path) -> bytes:
    """Reads the beginning of a .safetensors file, with its header."""
    with path.open("rb") as file:
        size = file.read(8)
        return size + file.read(min(int.from_bytes(size, "little"), MAX_BYTES))


def write_weights(model: nn.Module, path: Path) -> None:
    """Writes all weights and buffers of a model to a .safetensors file for ``load_weights``."""
    path.write_bytes(weights_bytes(model))


def weights_bytes(model: nn.Module) -> bytes:
    """Returns all weights and buffers of a model as .safetensors, the same bytes for equal ones.

    Each name gets a separate copy, so tied weights are written once per name. The metadata record
    the settings of GroupNorm layers, if there are any.
    Errors: DataError for a state_dict with anything but tensors.
    """
    writer = optional("safetensors.torch", extra="cli")
    state = model.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise DataError(
                f"The model has a {type(tensor).__name__} as {name} in its state_dict, and "
                ".safetensors can only hold tensors. Register it as a buffer."
            )
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    try:
        content: bytes = writer.save(plain, metadata_of(model))
    except Exception as unfit:  # its errors have no common base
        raise DataError(
            f"The model's weights cannot be written as .safetensors: {unfit}"
        ) from unfit
    return content


def _without_prefix(
    state: dict[str, Tensor], own: Mapping[str, Any], path: Path
) -> dict[str, Tensor]:
    """Removes the prefixes of wrappers from names, if only that makes them fit."""
    renamed, wrappers = state, list[str]()
    while not all(key in own for key in renamed):
        prefix = next((wrapper for wrapper in _WRAPPERS if _is_on(wrapper, renamed)), None)
        if prefix is None:
            return state
        wrappers.append(f"{prefix} of {_WRAPPERS[prefix]}")
        shorter = {_taken_off(prefix, key): tensor for key, tensor in renamed.items()}
        if len(shorter) < len(renamed):
            return state
        renamed = shorter
    if wrappers:
        _log.warning("%s: removed the prefix %s from its names.", path, " and ".join(wrappers))
    return renamed


def _is_on(prefix: str, names: Iterable[str]) -> bool:
    if prefix == _COMPILED:  # only a part of the model may be compiled
        return any(f".{prefix}" in f".{name}" for name in names)
    return all(name.startswith(prefix) for name in names)


def _taken_off(prefix: str, name: str) -> str:
    if prefix == _COMPILED:
        return f".{name}".replace(f".{prefix}", ".")[1:]
    return name.removeprefix(prefix)


def _with_tied(state: dict[str, Tensor], own: Mapping[str, Any], path: object) -> dict[str, Tensor]:
    """Adds the missing names of tied weights; raises DataError if tied weights differ."""
    groups: dict[int, list[str]] = {}
    for name, tensor in own.items():
        if isinstance(tensor, Tensor):
            groups.setdefault(id(tensor), []).append(name)
    state = dict(state)
    for names in groups.values():
        here = [name for name in names if name in state]
        for name in here[1:]:
            if not _equal(state[name], state[here[0]]):
                raise DataError(
                    f"{path} has different weights for {here[0]} and {name}, which the model ties: "
                    "they belong to another model."
                )
        state |= {name: state[here[0]] for name in names if here}
    return state


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.nan_to_num(), right.nan_to_num())


def _faults(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> Iterable[str]:
    """Lists why weights do not fit the model."""
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    if missing:
        yield f"it lacks {_listed(missing)}"
    if unknown:
        yield f"the model has no {_listed(unknown)}{_hint(unknown)}"
    for name, tensor in state.items():
        wanted = own.get(name)
        if not isinstance(wanted, Tensor) or isinstance(wanted, nn.UninitializedParameter):
            continue
        if wanted.shape != tensor.shape:
            yield f"{name} has shape {tuple(tensor.shape)}, the model's has {tuple(wanted.shape)}"
        elif not _keeps_digits(tensor, wanted.dtype):
            yield (
                f"{name} is {tensor.dtype}, the model's is {wanted.dtype}, which would lose "
                "digits: create the model in the file's dtype, or save weights in the model's"
            )


def _keeps_digits(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype == dtype or _equal(tensor, tensor.to(dtype).to(tensor.dtype))


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _MAX_SHOWN_NAMES} more" if len(names) > _MAX_SHOWN_NAMES else ""
    return f"{', '.join(names[:_MAX_SHOWN_NAMES])}{rest}"


def _hint(names: Iterable[str]) -> str:
    """Returns a hint on the wrapper whose prefix the names have."""
    for prefix, wrapper in _WRAPPERS.items():
        if any(f".{prefix}" in f".{name}" for name in names):
            return f" ({prefix} is {wrapper}'s: save the state_dict of the model inside it)"
    return ""
