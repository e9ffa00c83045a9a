"""Hashes that identify a model: weights, buffers, structure and every plain attribute."""

import functools
import types
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from shieldnet.data.examples import raw_bytes

# Attributes that torch keeps in every module and that do not affect its answers; hooks do.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PRINTED = frozenset({"extra_repr"})  # how a layer is printed, which torchao sets
_MACHINERY = frozenset(vars(nn.Module())) - frozenset(_HOOKS) | _PRINTED
_OF_THE_PROCESS = frozenset({"_original_object_hash"})  # by transformers: Python's hash
_OF_THE_PLACE = frozenset({"name_or_path", "_name_or_path"})  # by transformers: a path of weights
_GRADIENTS = frozenset({"grad_sample", "summed_grad"})  # of a training with opacus
_MAX_DEPTH = 50
_MAX_NAMED = 5
_SHORT = 2  # digits of a hash that only tells what differs


def weights_hash(model: nn.Module, *, compiled: bool = False, placed: bool = False) -> str:
    """Returns a hash that identifies a model.

    It covers weights, all buffers, the rest of the state_dict, the classes of all modules, hooks
    and every plain attribute: tensors with their attributes, arrays, containers, values, and
    objects with their content. It does not cover code and its data (class attributes, globals,
    constants), modes (training, requires_grad), gradients, devices or the path that transformers
    loaded a model from, so that the model that finetune returned and one that a factory makes with
    its weights have the same hash.

    compiled: whether to cover objects of compiled classes, such as the trees of a forest, by their
    pickled content. Guarantees use False, as their hashes always did. placed: whether to cover the
    path that transformers loaded a model from, as hashes of the first weeks did.
    """
    return _Digest(compiled, placed).of_model(model)


def is_named_by(model: nn.Module, named: str | None) -> bool:
    """Returns whether a hash is that of a model, as it is computed now or as it once was."""
    return named == weights_hash(model) or named == weights_hash(model, placed=True)


def state_hash(model: nn.Module) -> str:
    """Returns the hash of the state_dict alone, as guarantees of version 1 use it."""
    digest = sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        for part in content_of(value):
            digest.update(part)
    return digest.hexdigest()


def tensors_hash(state: Mapping[str, object]) -> str | None:
    """Returns a hash of tensors by name, in whatever order they come; None where one is none.

    A file of weights has it, too, so that a report names its weights without the model's code.
    """
    digest = sha256()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):
            return None
        digest.update(f"{len(name)} {name} {value.dtype} {tuple(value.shape)}".encode())
        for part in content_of(value):
            digest.update(part)
    return digest.hexdigest()


def unhashed(model: nn.Module) -> tuple[str, ...]:
    """Names attributes of which the hash covers only the type, such as locks and files."""
    digest = _Digest()
    digest.of_model(model)
    return tuple(digest.opaque[:_MAX_NAMED])


def attribute_hashes(model: nn.Module) -> dict[str, str]:
    """Returns two digits of a hash of every plain attribute by its name, of all layers together.

    Two models of different ``weights_hash`` are compared by it. Of an object, such as a
    configuration, every attribute has its own: ``config.dtype``. With so few digits an attribute
    cannot be guessed by its own hash.
    """
    hashes: dict[str, Any] = defaultdict(sha256)
    modules: dict[int, tuple[int, object]]
    modules = {id(module): (0, module) for module in model.modules()}
    digest = _Digest(seen=modules)
    for _, module in list(modules.values()):
        skipped = _MACHINERY | _left_out(module)
        for key, attribute in vars(module).items():
            if key in skipped:
                continue
            held = {"": list(attribute.values())} if key in _HOOKS else _attributes(attribute)
            for inner, value in held.items():
                known = len(modules)
                for line in digest._lines(value, key, 0):
                    hashes[f"{key}.{inner}" if inner else key].update(line)
                while len(modules) > known:  # every attribute by itself
                    modules.popitem()
    return {name: hashes[name].hexdigest()[:_SHORT] for name in sorted(hashes)}


def _attributes(value: object) -> dict[str, object]:
    """Returns the parts of an attribute that have a hash each: of a plain object, or itself."""
    plain = isinstance(value, Tensor | nn.Module | np.ndarray | type | types.FunctionType | Enum)
    held = None if plain else getattr(value, "__dict__", None)
    if not held:
        return {"": value}
    return {key: held[key] for key in held.keys() - _left_out(value)}


def _left_out(owner: object, *, placed: bool = False) -> frozenset[str]:
    """Names the attributes of an object that no hash covers."""
    is_theirs = any(kind.__module__.startswith("transformers.") for kind in type(owner).__mro__)
    return _OF_THE_PROCESS | _OF_THE_PLACE if is_theirs and not placed else _OF_THE_PROCESS


@dataclass
class _Digest:
    """Lists the content of a model, as lines. placed: as in ``weights_hash``."""

    compiled: bool = False
    placed: bool = False
    opaque: list[str] = field(default_factory=list)
    seen: dict[int, tuple[int, object]] = field(default_factory=dict)

    def of_model(self, model: nn.Module) -> str:
        digest = sha256()
        for module in model.modules():
            self.seen[id(module)] = (len(self.seen), module)
        for line in self._model(model):
            digest.update(len(line).to_bytes(8, "little"))
            digest.update(line)
        return digest.hexdigest()

    def _model(self, model: nn.Module) -> Iterator[bytes]:
        state = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        more = model.state_dict(keep_vars=True)  # a custom state_dict may have fewer entries
        for name, value in (*sorted(state.items()), *sorted(more.items())):
            if name in state and value is not state[name]:
                continue
            if name in more or name in state:
                yield f"state {name}".encode()
                yield from self._lines(value, name, 0)
        for name, module in model.named_modules(remove_duplicate=False):
            yield f"module {name} {type(module).__qualname__}".encode()
            skipped = _MACHINERY | _left_out(module, placed=self.placed)
            for key, attribute in sorted(vars(module).items()):
                if key in skipped:
                    continue
                # Hooks are numbered in order of registration across all models.
                held = list(attribute.values()) if key in _HOOKS else attribute
                yield f"attribute {key}".encode()
                yield from self._lines(held, f"{name}.{key}".lstrip("."), 0)

    def _lines(self, value: object, path: str, depth: int) -> Iterator[bytes]:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            yield f"{type(value).__name__} {value!r}".encode(errors="surrogatepass")
            yield from self._attached(value, path, depth)
        elif isinstance(value, Tensor):
            yield f"tensor {value.dtype} {value.layout} {tuple(value.shape)}".encode()
            yield from content_of(value)
            if (made_of := _made_of(value)) is not None:
                yield from self._lines((type(value), made_of[1]), path, depth + 1)
            for key, held in sorted(vars(value).items()):
                if key in _GRADIENTS or isinstance(held, bool | int | float | None):
                    continue  # marks are lost in copies
                yield f"attached {key}".encode()
                yield from self._lines(held, f"{path}.{key}", depth + 1)
        elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            yield f"array {value.dtype} {value.shape}".encode()
            yield value.tobytes()
            yield from self._attached(value, path, depth)
        elif isinstance(value, Enum):
            yield f"{type(value).__name__} {value.name}".encode()
            yield from self._lines(value.value, path, depth + 1)
        elif isinstance(value, PurePath | torch.dtype | torch.device | torch.Size | range):
            yield f"{type(value).__name__} {value!r}".encode()
        elif id(value) in self.seen:
            yield f"again {self.seen[id(value)][0]}".encode()
        elif depth > _MAX_DEPTH:
            yield from self._opaque(value, path)
        else:
            self.seen[id(value)] = (len(self.seen), value)
            yield f"{type(value).__qualname__} [".encode()
            yield from self._inside(value, path, depth + 1)
            if isinstance(value, Mapping | list | tuple | set | frozenset | np.ndarray):
                yield from self._attached(value, path, depth)
            yield b"]"

    def _attached(self, value: object, path: str, depth: int) -> Iterator[bytes]:
        """Lists attributes of a value of a subclass of a plain type."""
        held = getattr(value, "__dict__", None)
        if held and depth <= _MAX_DEPTH:
            yield from self._lines(dict(sorted(held.items())), path, depth + 1)

    def _inside(self, value: object, path: str, depth: int) -> Iterator[bytes]:
        if isinstance(value, nn.Module):
            yield from self._model(value)  # in an attribute, outside of the module tree
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from self._lines(key, path, depth)
                yield from self._lines(item, f"{path}[{key!r:.40}]", depth)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from self._lines(item, path, depth)
        elif isinstance(value, set | frozenset):
            for item in sorted(value, key=repr):
                yield from self._lines(item, path, depth)
        elif isinstance(value, np.ndarray):
            yield from self._lines((value.shape, value.tolist()), path, depth)
        elif isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
            yield value.__name__.encode()
        elif isinstance(value, types.FunctionType):
            yield value.__qualname__.encode()
            cells = [cell.cell_contents for cell in value.__closure__ or () if is_filled(cell)]
            holds = (cells, value.__defaults__, value.__kwdefaults__, vars(value))
            yield from self._lines(holds, path, depth)
        elif isinstance(value, types.MethodType):
            if isinstance(value.__func__, functools.partial):
                yield from self._lines(value.__func__, path, depth)
            else:
                yield value.__func__.__qualname__.encode()
            yield from self._lines(value.__self__, path, depth)
        elif isinstance(value, functools.partial):
            yield from self._lines((value.func, value.args, value.keywords), path, depth)
        elif isinstance(value, torch.fx.Graph):
            yield str(value).encode()
        elif hasattr(value, "__dict__"):
            left_out = _left_out(value, placed=self.placed)
            held = {key: vars(value)[key] for key in sorted(vars(value).keys() - left_out)}
            yield from self._lines(held, path, depth)
        elif self.compiled and (state := reduced(value)) is not None:
            yield from self._lines(state, path, depth)
        else:
            yield from self._opaque(value, path)

    def _opaque(self, value: object, path: str) -> Iterator[bytes]:
        if type(value) is not object:
            self.opaque.append(f"{path} ({type(value).__qualname__})")
        yield f"opaque {type(value).__qualname__}".encode()


def reduced(value: object) -> tuple[object, ...] | None:
    """Returns the pickled content of a compiled object, or None if it has none.

    An object that pickling would not preserve refuses this itself.
    """
    if isinstance(value, types.CodeType):
        return None
    try:
        state = value.__reduce_ex__(2)
    except TypeError:
        return None
    return None if isinstance(state, str) else state


def _made_of(value: Any) -> tuple[dict[str, Tensor], object] | None:
    """Returns what a weight of torchao is made of, tensors and settings; None for a plain one."""
    if not is_traceable_wrapper_subclass(value):
        return None
    names, settings = value.__tensor_flatten__()
    return {name: getattr(value, name) for name in names}, settings


def content_of(value: Tensor) -> Iterator[bytes]:
    """Returns the whole content of a tensor of any layout."""
    if (made_of := _made_of(value)) is not None:
        for name, part in made_of[0].items():
            yield f"{name} {part.dtype} {tuple(part.shape)}".encode()
            yield from content_of(part)
    elif value.is_quantized:
        yield raw_bytes(value.dequantize())
        yield repr(value.qscheme()).encode()
    elif value.layout is torch.strided:
        yield raw_bytes(value.resolve_conj().resolve_neg())
    elif value.layout is torch.sparse_coo:
        whole = value.detach().coalesce()
        yield raw_bytes(whole.indices())
        yield raw_bytes(whole.values())
    else:
        yield raw_bytes(value.detach().to_dense())


def is_filled(cell: types.CellType) -> bool:
    """Returns whether a closure's cell has a value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
