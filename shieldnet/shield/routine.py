"""The quick way to an answer that is like one before in all but its numbers."""

from typing import Any

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
        self._asked: object = None
        self._arguments: tuple[Any, ...] = ()
        self._dtype: torch.dtype | None = None
        self._device: torch.device | None = None
        self._sizes: torch.Size | None = None

    def learn(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        """Takes in a question and an output that were looked at in full."""
        self.forget()
        if type(output) is not Tensor or is_captured():
            return
        self._asked = form_of_call(args, kwargs)
        is_one = len(args) == 1 and not kwargs and type(args[0]) is Tensor
        self._arguments = (args[0].dtype, args[0].device) if is_one else ()
        self._dtype, self._device, self._sizes = output.dtype, output.device, output.shape[1:]

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> bool:
        """Says whether nothing but numbers and the count of rows can be new."""
        return (
            not is_captured()
            and type(output) is Tensor
            and output.dtype is self._dtype
            and output.shape[1:] == self._sizes
            and output.dim() > 0
            and output.device == self._device
            and self._is_asked_alike(args, kwargs)
        )

    def _is_asked_alike(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor and self._arguments:
            return (args[0].dtype, args[0].device) == self._arguments
        return form_of_call(args, kwargs) == self._asked

    def forget(self) -> None:
        """Has the next output looked at in full."""
        self._dtype = None
