"""The quick way to an answer that is like one before in all but its numbers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shieldnet.core.opaque_ops import is_captured
from shieldnet.outputs.nested import form_of_call


class Routine:
    """Remembers the form of a question and of a model's output that were looked at in full.

    An output of the same type, dtype, device and shape but for its rows, to a question of the same
    form, is released in the same form and with the same extent: of it only the values are checked.
    Anything else is looked at in full again.
    """

    def __init__(self) -> None:
        self._known: _Known | None = None  # set at once: several threads may ask

    def learn(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        """Takes in a question and an output that were looked at in full."""
        if type(output) is not Tensor or is_captured():
            self._known = None
            return
        is_one = len(args) == 1 and not kwargs and type(args[0]) is Tensor
        one = (args[0].dtype, args[0].device) if is_one else None
        form = form_of_call(args, kwargs)
        self._known = _Known(form, one, output.dtype, output.device, output.shape[1:])

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> bool:
        """Returns whether nothing but numbers and the count of rows can be new."""
        known = self._known
        return (
            known is not None
            and not is_captured()
            and type(output) is Tensor
            and output.dtype is known.dtype
            and output.shape[1:] == known.sizes
            and output.dim() > 0
            and output.device == known.device
            and known.is_asked(args, kwargs)
        )

    def forget(self) -> None:
        """Has the next output looked at in full."""
        self._known = None


class _Known(NamedTuple):
    """The form of a question (of one tensor, its type and device), and of an output."""

    form: object
    one: tuple[torch.dtype, torch.device] | None
    dtype: torch.dtype
    device: torch.device
    sizes: torch.Size

    def is_asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self.one is not None and len(args) == 1 and not kwargs and type(args[0]) is Tensor:
            return (args[0].dtype, args[0].device) == self.one
        return form_of_call(args, kwargs) == self.form
