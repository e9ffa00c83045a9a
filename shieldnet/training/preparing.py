"""The copy that is trained, tried before anything is learned, and what is given back of it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.shield.module import Shield
from shieldnet.training.countermeasures.base import (
    Countermeasure,
    LabelSmoothing,
    WeightDecay,
)
from shieldnet.training.features import features
from shieldnet.training.layers import last_layer, shared_weights
from shieldnet.training.loop import Course
from shieldnet.training.losses import Criterion, Loss, scores_of, weighted_mean
from shieldnet.training.low_rank import merge
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.gradients import RecordGradients
from shieldnet.training.private.hazards import Hazard, fixed, hazards_of, stand_ins
from shieldnet.training.private.preflight import Preflight, examine
from shieldnet.training.records import Records
from shieldnet.training.settings import FinetuneSettings
from shieldnet.training.trainable import Trainable, choose_trainable

_WEIGHTED = Hazard(
    "weighted loss",
    "the loss",
    "its mean divides by the weights of the whole batch, so that one record scales all others",
    "Sum it instead (reduction='none'): a record's weight is then its own",
    fixes=True,
)


def publish(working: nn.Module, finished: nn.Module, *, everything: bool) -> None:
    """Puts what was trained into the form that is given back.

    everything: or nothing but what got noise: buffers and frozen weights then stay as they came.
    """
    every = working.named_parameters(remove_duplicate=False)  # tied weights by all their names
    named = [name for name, one in every if one.requires_grad]
    named = merge(working) or named
    state = working.state_dict()
    if not everything:
        state = {**finished.state_dict(), **{name: state[name] for name in named}}
    finished.load_state_dict(state)


def as_read(model: nn.Module, records: Records) -> Records:
    """Returns real numbers in the type of the model's weights."""
    kinds = [one.dtype for one in model.parameters() if one.is_floating_point()]
    if not kinds:
        raise ConfigError("Expected a model with weights, got one without.")
    return records.of_type(kinds[0])


def require_plain_weights(model: nn.Module, private: DPSGD | None) -> None:
    """Raises ConfigError for a model whose weights are not numbers that can be trained."""
    if isinstance(model, Shield):
        raise ConfigError(
            "A Shield is not trained: train the model itself, shield.model, and harden what "
            "finetune returns."
        )
    if not isinstance(model, nn.Module):
        raise ConfigError(f"Expected an nn.Module, got {type(model).__name__}.")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ConfigError("Expected the model itself, got torch.compile's: pass model._orig_mod.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError("Expected an nn.Module in Python, got TorchScript: pass the module.")
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(weight):
            raise ConfigError(f"{name} has no shape yet: ask the model once about a row first.")
        if private is not None and type(weight) not in (Tensor, nn.Parameter, nn.Buffer):
            raise ConfigError(
                f"{name} is a {type(weight).__name__}, whose own code would see every record. Make "
                "it a plain tensor to train privately."
            )
        if weight.is_meta or weight.is_complex():
            kind = "on the meta device" if weight.is_meta else "complex"
            raise ConfigError(f"Expected real weights that hold numbers, got {name}, {kind}.")
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise ConfigError(f"Expected finite weights, got NaN or Inf in {name}.")


def try_once(model: nn.Module, records: Records, criterion: Loss, private: DPSGD | None) -> None:
    """Asks a copy of the model about two records, so that what does not fit is said at once.

    With DPSGD it is asked about rows of their shape: what runs in Python never sees a record.
    """
    copied = copy.deepcopy(model).eval()
    device = next(copied.parameters()).device
    rows = (records.inputs, records.labels) if private is None else stand_ins(records)
    inputs, labels = (part[:2].to(device) for part in rows)
    try:
        with torch.no_grad():
            output = copied(inputs.clone())  # it may write into them
    except Exception as unread:  # the user's own code: whatever it raises is theirs to fix
        raise DataError(
            f"The model cannot read inputs of shape {tuple(inputs.shape)} and type "
            f"{inputs.dtype}: {type(unread).__name__}: {unread}"
        ) from unread
    if isinstance(criterion, Criterion):
        criterion.require_fit(scores_of(output), labels, records.labels)
    if private is None:
        criterion(output, labels)


def prepared_copies(
    model: nn.Module,
    records: Records,
    countermeasures: Sequence[Countermeasure],
    private: DPSGD | None,
    settings: FinetuneSettings,
    loss: object,
) -> tuple[nn.Module, nn.Module]:
    """Returns the copy that is trained, and the form of what is given back."""
    finished, working = copy.deepcopy(model), copy.deepcopy(model)
    choose_trainable(working, settings.train)
    for one in countermeasures:
        one.prepare(working)
    for layer in working.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False  # the same gradient, as rows of numbers
    _set_mode(working, settings.train)
    if private is None or not private.is_certified:
        return working, finished
    weighted = (_WEIGHTED,) if weighted_mean(loss) and not settings.fix else ()
    hazards = hazards_of(working, records)
    if settings.fix and any(one.fixes for one in hazards):
        finished = fixed(finished, working, hazards)
        working = fixed(working, working, hazards)
        hazards = hazards_of(working, records)
    Preflight((*weighted, *hazards)).require()
    return working, finished


def _set_mode(model: nn.Module, train: Trainable) -> None:
    """Puts a model into training mode; with the last layer alone, the others only compute."""
    model.train(not train.last_layer_alone)
    last_layer(model).train()


def what_is_learned(
    working: nn.Module,
    records: Records,
    countermeasures: Sequence[Countermeasure],
    settings: FinetuneSettings,
) -> tuple[nn.Module, Records]:
    """Returns the last layer and what goes into it, where that is all that is trained."""
    simple = all(isinstance(one, DPSGD | WeightDecay | LabelSmoothing) for one in countermeasures)
    if not settings.train.last_layer_alone or not simple:
        return working, records
    last, tied = last_layer(working), shared_weights(working)
    if any(id(one) in tied for one in last.parameters(recurse=False)):
        return working, records
    found = features(working, last, records.inputs)
    return (working, records) if found is None else (last, Records(found, records.labels))


def gradients_examined(
    trained: nn.Module,
    learned: Records,
    course: Course,
    private: DPSGD,
    settings: FinetuneSettings,
) -> tuple[Preflight, RecordGradients]:
    """Captures what a record asks of the weights, or raises PreflightFailed."""
    device = next(trained.parameters()).device
    few = Records(learned.inputs[:256].to(device), learned.labels[:256].to(device))

    def examined() -> tuple[Preflight, RecordGradients | None]:
        return examine(
            trained,
            few,
            course.losses,
            clip=private.clipping.start,
            views=private.augmentations,
            move=course.move,
        )

    preflight, gradients = examined()
    if settings.fix and any(hazard.fixes for hazard in preflight.hazards):
        for hazard in preflight.hazards:
            trained.get_parameter(hazard.where).requires_grad_(False)
        preflight, gradients = examined()
    if private.is_certified or gradients is None:
        preflight.require()
    assert gradients is not None  # noqa: S101  # beside None stands a hazard
    return preflight, gradients
