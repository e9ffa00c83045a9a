"""Preparation of the copy to train, and publication of the result."""

import copy
from dataclasses import dataclass, replace

from torch import nn

from shieldnet.training.distributed import Ranks
from shieldnet.training.features import features
from shieldnet.training.ids import naming_ids
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
from shieldnet.training.traces import Tracing
from shieldnet.training.trainable import Trainable, choose_trainable
from shieldnet.training.updates import Sgd, Updates

_MAX_EXAMINED = 256
_WEIGHTED = Hazard(
    "weighted loss",
    "the loss",
    "its mean divides by the weights of the whole batch, so that one record scales all others",
    "Return one loss per record (reduction='none'), so that no record's weight affects another's",
    fixes="does it, with class weights divided by their mean",
    done="taken the weighted loss record by record, with class weights divided by their mean",
)


@dataclass(frozen=True)
class Copies:
    """Holds two copies of a model: the one to train, and the one to return.

    fixes: what ``fix=True`` changed in them, in words.
    """

    working: nn.Module
    finished: nn.Module
    fixes: tuple[str, ...] = ()

    def publish(self, *, everything: bool) -> None:
        """Copies the trained weights into the model to return.

        everything: whether to copy buffers and frozen weights too; otherwise only weights that got
        noise change.
        """
        named = self.working.named_parameters(remove_duplicate=False)  # tied weights by all names
        trained = [name for name, weight in named if weight.requires_grad]
        trained = merge(self.working) or trained
        state = self.working.state_dict()
        if not everything:
            state = {**self.finished.state_dict(), **{name: state[name] for name in trained}}
        self.finished.load_state_dict(state)


def prepared_copies(plan: Plan) -> Copies:
    """Copies the model; if a guarantee is stated, finds hazards and fixes those that it may.

    Errors: PreflightFailed for the remaining hazards.
    """
    finished, working = copy.deepcopy(plan.model), copy.deepcopy(plan.model)
    choose_trainable(working, plan.settings.train)
    for countermeasure in plan.countermeasures:
        countermeasure.prepare(working)
    for layer in working.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False  # the same gradient, dense
    _set_mode(working, plan.settings.train)
    if plan.private is None or not plan.private.is_certified:
        return Copies(working, finished)
    fix = plan.settings.fix
    weighted = (_WEIGHTED,) if weighted_mean(plan.loss) else ()
    hazards = hazards_of(working, plan.records)
    applied = tuple(hazard.done for hazard in (*weighted, *hazards) if hazard.fixes and fix)
    if fix and any(hazard.fixes for hazard in hazards):
        finished = fixed(finished, working, hazards)
        working = fixed(working, working, hazards)
        hazards = hazards_of(working, plan.records)
    Preflight((*(() if fix else weighted), *hazards)).require()
    return Copies(working, finished, applied)


def prepared_updates(plan: Plan, copies: Copies, ranks: Ranks) -> tuple[Updates, Preflight | None]:
    """Returns the updates of the working copy's weights, and the result of preflight."""
    trained, learned = _what_is_learned(plan, copies.working)
    if plan.private is None:
        epochs = -(-plan.steps // -(-len(learned) // plan.size))
        tracing = Tracing(epochs, len(learned)) if ranks.count == 1 else None
        return Sgd(trained, learned, plan.objective, plan.size, ranks, tracing), None
    preflight, gradients = _gradients_examined(
        trained, learned, plan.objective, plan.private, fix=plan.settings.fix
    )
    preflight = replace(preflight, fixes=(*copies.fixes, *preflight.fixes))
    private, noise, rate = plan.private, plan.noise, plan.rate
    return DpSgd(trained, gradients, learned, private, noise, rate, ranks), preflight


def _set_mode(model: nn.Module, train: Trainable) -> None:
    """Sets training mode; if only the last layer is trained, evaluation mode for the others."""
    model.train(not train.last_layer_alone)
    last_layer(model).train()


def _what_is_learned(plan: Plan, working: nn.Module) -> tuple[nn.Module, Records]:
    """Returns the model and records to train; the last layer and its inputs if only it is."""
    same_inputs = all(measure.keeps_inputs for measure in plan.countermeasures)
    if not (same_inputs and plan.settings.train.last_layer_alone):
        return working, plan.records
    last, tied = last_layer(working), shared_weights(working)
    if any(id(weight) in tied for weight in last.parameters(recurse=False)):
        return working, plan.records
    with naming_ids(working, plan.records):
        inputs = features(working, last, plan.records.inputs)
    if inputs is None:
        return working, plan.records
    return last, Records(inputs, plan.records.labels)


def _gradients_examined(
    trained: nn.Module, learned: Records, objective: Objective, private: DPSGD, *, fix: bool
) -> tuple[Preflight, RecordGradients]:
    """Captures the gradient of one record as a graph, or raises PreflightFailed."""
    device = next(trained.parameters()).device
    few = Records(*learned.rows(slice(_MAX_EXAMINED), device), packing=learned.packing)

    def examined() -> tuple[Preflight, RecordGradients | None]:
        return examine(
            trained,
            few,
            objective.losses,
            clip=private.clipping.start,
            views=private.augmentations,
            move=objective.move,
            data=learned,
        )

    preflight, gradients = examined()
    if fix and any(hazard.fixes for hazard in preflight.hazards):
        for hazard in preflight.hazards:
            trained.get_parameter(hazard.where).requires_grad_(False)
        frozen = tuple(hazard.done for hazard in preflight.hazards)
        preflight, gradients = examined()
        preflight = replace(preflight, fixes=frozen)
    if private.is_certified or gradients is None:
        preflight.require()
    assert gradients is not None  # noqa: S101  # None always comes with a hazard
    return preflight, gradients
