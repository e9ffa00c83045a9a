"""Checks that a model can be trained on the records, before anything is copied or drawn."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.data.examples import row_bytes_of
from shieldnet.outputs.adapters import name_of
from shieldnet.outputs.estimators import is_estimator
from shieldnet.outputs.functions import Around
from shieldnet.shield.module import Shield
from shieldnet.training.losses import Loss
from shieldnet.training.records import Records, as_records
from shieldnet.training.trial import try_once


def require_gradients(model: nn.Module) -> nn.Module:
    """Returns the model; raises ConfigError for an estimator or function without gradients."""
    if isinstance(model, Around) or is_estimator(model):
        name = name_of(model) if isinstance(model, nn.Module) else type(model).__name__
        raise ConfigError(
            f"finetune trains the weights of a torch module by gradients, which {name} does not "
            "have. Fit it with its own method, then harden and audit the fitted model."
        )
    return model


def as_read(model: nn.Module, records: Records) -> Records:
    """Returns the records with floating-point numbers in the dtype of the model's weights."""
    dtypes = [weight.dtype for weight in model.parameters() if weight.is_floating_point()]
    if not dtypes:
        raise ConfigError("Expected a model with weights, got one without.")
    return records.of_type(dtypes[0])


def held_apart(
    model: nn.Module, data: object, records: Records, role: str, loss: Loss, *, private: bool
) -> Records:
    """Reads held-out records in the form that the model takes.

    role: ``heldout`` or ``validation``, for messages. loss: without countermeasures. private:
    whether the model may see no record. Errors: DataError for other inputs, shapes or labels than
    the training records have, and for records that are also trained on.
    """
    with _about(role):
        rows = as_read(model, as_records(data))
    if rows.packing != records.packing:
        expected, got = (
            "one input" if packing is None else packing.described
            for packing in (records.packing, rows.packing)
        )
        raise DataError(
            f"Expected {role} rows with the inputs that the records have ({expected}), got {got}."
        )
    if rows.inputs.shape[1:] != records.inputs.shape[1:]:
        raise DataError(
            f"Expected {role} rows of shape {tuple(records.inputs.shape[1:])}, as in the training "
            f"records, got {tuple(rows.inputs.shape[1:])}."
        )
    ours, theirs = (
        set(row_bytes_of(side.inputs.reshape(len(side), -1))) for side in (records, rows)
    )
    if shared := len(ours & theirs):
        raise DataError(
            f"{shared} of the {role} rows are also training records, so they show nothing about "
            "unseen ones. Pass other rows of the same kind."
        )
    with _about(role):
        try_once(model, rows, loss, private=private)
    return rows


@contextmanager
def _about(role: str) -> Iterator[None]:
    """Names the argument in errors about its data."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"In {role}=: {error}") from error


def require_plain_weights(model: nn.Module, *, private: bool) -> None:
    """Raises ConfigError for a model whose weights cannot be trained."""
    _require_plain_module(model)
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(weight):
            raise ConfigError(f"{name} has no shape yet: call the model once on a row first.")
        if private and type(weight) not in (Tensor, nn.Parameter, nn.Buffer):
            raise ConfigError(
                f"{name} is a {type(weight).__name__}, whose code would see every record. Make it "
                "a plain tensor to train privately."
            )
        if weight.is_meta or weight.is_complex():
            state = "on the meta device" if weight.is_meta else "complex"
            raise ConfigError(f"Expected real-valued weights with data, got {name}, {state}.")
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise ConfigError(f"Expected finite weights, got NaN or Inf in {name}.")


def _require_plain_module(model: object) -> None:
    if isinstance(model, Shield):
        raise ConfigError(
            "A Shield cannot be trained: train the model itself, shield.model, and harden the "
            "model that finetune returns."
        )
    if not isinstance(model, nn.Module):
        raise ConfigError(f"Expected an nn.Module, got {type(model).__name__}.")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ConfigError("Expected an uncompiled model, got torch.compile's: pass model._orig_mod")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError("Expected a Python nn.Module, got TorchScript: pass the original module.")
