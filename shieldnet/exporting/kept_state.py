"""The state of a model that is asked and traced: restored, and refused if it changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from shieldnet.core.errors import ConfigError


@contextmanager
def kept_state(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restores a model afterwards: parameters, buffers and attributes of all its modules.

    Gives a function that restores it in between, and raises ConfigError if a parameter, a buffer or
    a tensor among the attributes had changed: what a model keeps of one caller's rows would be in
    the file, or in the next caller's answer.
    """
    saved = [_Saved.of(name, module) for name, module in model.named_modules()]

    def restore() -> None:
        changed = [name for one in saved for name in one.restored()]
        if changed:
            raise ConfigError(
                f"The model changes {', '.join(sorted(set(changed)))} while it answers, so that "
                "rows of one caller could be in the file, or in the answer to the next one; "
                "nothing was written, and the model is as it was. Do not assign it in forward."
            )

    try:
        yield restore
    finally:
        for one in saved:
            one.restored()


class _Saved(NamedTuple):
    """The attributes of one module, its registered tensors, and copies of their values."""

    name: str
    module: nn.Module
    attributes: dict[str, Any]
    registered: tuple[dict[str, Any], ...]
    values: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, name: str, module: nn.Module) -> "_Saved":
        attributes = dict(vars(module))
        registered = tuple(dict(attributes[kind]) for kind in _REGISTERED)
        values = {
            key: (part, part.detach().clone())
            for group in (attributes, *registered[:2])
            for name_of_value, value in group.items()
            if isinstance(value, Tensor)
            for key, part in _parts(name_of_value, value)
        }
        return cls(name, module, attributes, registered, values)

    def restored(self) -> list[str]:
        """Restores the module and returns the names of the tensors that had changed."""
        changed = []
        for kind, before in zip(_REGISTERED, self.registered, strict=True):
            now = self.attributes[kind]
            if now.keys() != before.keys() or any(now[key] is not before[key] for key in before):
                names = now.keys() | before.keys()
                changed += [key for key in names if now.get(key) is not before.get(key)]
                now.clear()
                now.update(before)
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for key, (tensor, value) in self.values.items():
            if not _same(tensor, value):
                changed.append(key)
                with torch.no_grad():
                    tensor.copy_(value)
        return [f"{self.name}.{key}".lstrip(".") for key in changed]


_REGISTERED = ("_parameters", "_buffers", "_modules")


def _parts(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Lists the plain tensors that a tensor consists of, such as a quantized weight's scale."""
    if is_traceable_wrapper_subclass(value):
        for inner in value.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{inner}", getattr(value, inner))
    elif not value.is_meta and value.layout is torch.strided:
        yield name, value


def _same(now: Tensor, before: Tensor) -> bool:
    if now.shape != before.shape:
        return False
    both_nan = (now != now) & (before != before)
    return bool(((now == before) | both_nan).all())
