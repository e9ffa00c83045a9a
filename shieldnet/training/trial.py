"""A first run of the model on two records, so that what does not fit is said at once."""

import copy
import inspect

import torch
from torch import nn

from shieldnet.core.errors import DataError
from shieldnet.outputs.adapters import name_of
from shieldnet.training.ids import FIX, ids_beyond, is_beyond
from shieldnet.training.losses import Criterion, Loss, scores_of
from shieldnet.training.private.hazards import stand_ins, without_requests
from shieldnet.training.records import Records
from shieldnet.training.several_inputs import own_forward

_STAND_INS = (
    "on stand-ins from 0 to 1 of the same shape, since no code may see a record of private training"
)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def try_once(model: nn.Module, records: Records, criterion: Loss, *, private: bool) -> None:
    """Runs a copy of the model on two records, to report a mismatch at once.

    private: runs it on stand-ins of the same shape, so that Python code never sees a record.
    Errors: DataError for inputs or labels that the model does not take.
    """
    copied = copy.deepcopy(model).eval()
    device = next(copied.parameters()).device
    rows = stand_ins(records) if private else (records.inputs, records.labels)
    inputs, labels = (column[:2].to(device) for column in rows)
    try:
        with torch.no_grad():
            output = copied(inputs.clone())  # it may write into them
    except Exception as unread:  # user code can raise anything
        raise _unread(model, records, unread, private=private) from unread
    if isinstance(criterion, Criterion):
        criterion.require_fit(scores_of(output), labels, records.labels)
    if not private:
        criterion(output, labels)


def _unread(model: nn.Module, records: Records, error: Exception, *, private: bool) -> DataError:
    """Says what the model takes and what the records are, with the fix where one is known."""
    packing, shape = records.packing, (min(2, len(records)), *records.inputs.shape[1:])
    forward = own_forward(model)
    takes = [
        parameter.name
        for parameter in inspect.signature(forward).parameters.values()
        if parameter.kind not in _VARIADIC
    ]
    given = f"inputs of shape {shape} and dtype {records.given}"
    if packing is not None:
        given = f"the inputs {packing.described_with_dtypes}"
    tried = [f"It was tried {_STAND_INS}."] if private else []
    reason = without_requests(str(error)).rstrip(".")
    text = f"The model failed on {given}: {type(error).__name__}: {reason}."
    if isinstance(error, TypeError) and takes and "forward()" in str(error):
        has = f"one input of shape {shape[1:]}" if packing is None else packing.described
        tried = []
        text = (
            f"Expected the inputs that {name_of(model)} takes, {', '.join(takes)}; your rows have "
            f"{has} ({error})."
        )
    beyond = "" if private or not is_beyond(error) else ids_beyond(model, records)
    hints = [f"{beyond}. {FIX}." if beyond else _whole_hint(records), _batches_hint(records)]
    return DataError(" ".join([text, *filter(None, hints), *tried]))


def _whole_hint(records: Records) -> str:
    """Returns the fix for whole numbers that are meant as real ones, such as bytes of images."""
    packing = records.packing
    if packing is None:
        name, is_whole = "x", not records.inputs.is_floating_point()
    else:
        pairs = zip(packing.shown_names, packing.dtypes, strict=True)
        name = next((name for name, dtype in pairs if not dtype.is_floating_point), "")
        is_whole = bool(name)
    if not is_whole:
        return ""
    return (
        f"Whole numbers stay whole, as for an embedding. For a layer of real numbers pass "
        f"{name}.float(), or {name}.float() / 255 for the bytes of images."
    )


def _batches_hint(records: Records) -> str:
    """Returns the fix for batches that are given as if each were a record."""
    packing = records.packing
    shapes = [records.inputs.shape[1:]] if packing is None else packing.shapes
    length = records.labels.shape[1] if records.labels.dim() > 1 else None
    if length is None or not all(shape and shape[0] == length for shape in shapes):
        return ""
    return (
        f"Rows are expected: if each of these {len(records)} is a batch of {length}, join them, "
        "torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])."
    )
