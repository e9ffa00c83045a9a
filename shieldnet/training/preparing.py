"""The copy that is trained, made ready for it, and what is given back of it."""

import copy
from dataclasses import dataclass

from torch import nn

from shieldnet.training.distributed import Ranks
from shieldnet.training.features import features
from shieldnet.training.layers import last_layer, shared_weights
from shieldnet.training.losses import weighted_mean
from shieldnet.training.low_rank import merge
from shieldnet.training.objective import Objective
from shieldnet.training.plan import Plan
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.gradients import RecordGradients
from shieldnet.training.private.hazards import Hazard, fixed, hazards_of
from shieldnet.training.private.noisy_sums import DpSgd
from shieldnet.training.private.preflight import Preflight, examine
from shieldnet.training.records import Records
from shieldnet.training.trainable import Trainable, choose_trainable
from shieldnet.training.updates import Sgd, Updates

_MAX_EXAMINED = 256
_WEIGHTED = Hazard(
    "weighted loss",
    "the loss",
    "its mean divides by the weights of the whole batch, so that one record scales all others",
    "Sum it instead (reduction='none'): a record's weight is then its own",
    fixes=True,
)


@dataclass(frozen=True)
class Copies:
    """Holds two copies of a model: the one that is trained, and the form of what is given back."""

    working: nn.Module
    finished: nn.Module

    def publish(self, *, everything: bool) -> None:
        """Puts what was trained into the form that is given back.

        everything: or nothing but what got noise: buffers and frozen weights then stay as they
        came.
        """
        named = self.working.named_parameters(remove_duplicate=False)  # tied ones by all names
        trained = [name for name, weight in named if weight.requires_grad]
        trained = merge(self.working) or trained
        state = self.working.state_dict()
        if not everything:
            state = {**self.finished.state_dict(), **{name: state[name] for name in trained}}
        self.finished.load_state_dict(state)


def prepared_copies(plan: Plan) -> Copies:
    """Copies the model; looks for hazards where a guarantee is stated, and fixes what may be.

    Errors: PreflightFailed for those that are left.
    """
    finished, working = copy.deepcopy(plan.model), copy.deepcopy(plan.model)
    choose_trainable(working, plan.settings.train)
    for countermeasure in plan.countermeasures:
        countermeasure.prepare(working)
    for layer in working.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False  # the same gradient, as rows of numbers
    _set_mode(working, plan.settings.train)
    if plan.private is None or not plan.private.is_certified:
        return Copies(working, finished)
    fix = plan.settings.fix
    weighted = (_WEIGHTED,) if weighted_mean(plan.loss) and not fix else ()
    hazards = hazards_of(working, plan.records)
    if fix and any(hazard.fixes for hazard in hazards):
        finished = fixed(finished, working, hazards)
        working = fixed(working, working, hazards)
        hazards = hazards_of(working, plan.records)
    Preflight((*weighted, *hazards)).require()
    return Copies(working, finished)


def prepared_updates(
    plan: Plan, working: nn.Module, ranks: Ranks
) -> tuple[Updates, Preflight | None]:
    """Returns what moves the weights of the working copy, and what was seen before they move."""
    trained, learned = _what_is_learned(plan, working)
    if plan.private is None:
        return Sgd(trained, learned, plan.objective, plan.size, ranks), None
    preflight, gradients = _gradients_examined(
        trained, learned, plan.objective, plan.private, fix=plan.settings.fix
    )
    private, noise, rate = plan.private, plan.noise, plan.rate
    return DpSgd(trained, gradients, learned, private, noise, rate, ranks), preflight


def _set_mode(model: nn.Module, train: Trainable) -> None:
    """Puts a model into training mode; with the last layer alone, the others only compute."""
    model.train(not train.last_layer_alone)
    last_layer(model).train()


def _what_is_learned(plan: Plan, working: nn.Module) -> tuple[nn.Module, Records]:
    """Returns the last layer and what goes into it, where that is all that is trained."""
    same_inputs = all(measure.keeps_inputs for measure in plan.countermeasures)
    if not (same_inputs and plan.settings.train.last_layer_alone):
        return working, plan.records
    last, tied = last_layer(working), shared_weights(working)
    if any(id(weight) in tied for weight in last.parameters(recurse=False)):
        return working, plan.records
    inputs = features(working, last, plan.records.inputs)
    if inputs is None:
        return working, plan.records
    return last, Records(inputs, plan.records.labels)


def _gradients_examined(
    trained: nn.Module, learned: Records, objective: Objective, private: DPSGD, *, fix: bool
) -> tuple[Preflight, RecordGradients]:
    """Captures what a record asks of the weights, or raises PreflightFailed."""
    device = next(trained.parameters()).device
    few = Records(*(learned.rows(slice(_MAX_EXAMINED), device)))

    def examined() -> tuple[Preflight, RecordGradients | None]:
        return examine(
            trained,
            few,
            objective.losses,
            clip=private.clipping.start,
            views=private.augmentations,
            move=objective.move,
        )

    preflight, gradients = examined()
    if fix and any(hazard.fixes for hazard in preflight.hazards):
        for hazard in preflight.hazards:
            trained.get_parameter(hazard.where).requires_grad_(False)
        preflight, gradients = examined()
    if private.is_certified or gradients is None:
        preflight.require()
    assert gradients is not None  # noqa: S101  # beside None stands a hazard
    return preflight, gradients
