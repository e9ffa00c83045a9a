"""finetune: trains a copy of a model privately, with heuristic countermeasures, or both."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from shieldnet.core.checks import positive, renamed
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import random_seed, replayed_noise
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.training.checkpoint import Checkpointer
from shieldnet.training.claims import findings_of_run, released_guarantee, with_variation
from shieldnet.training.compatibility import require_gradients
from shieldnet.training.countermeasures.base import Countermeasure
from shieldnet.training.distributed import Ranks
from shieldnet.training.loop import take_steps
from shieldnet.training.plan import Plan
from shieldnet.training.preparing import prepared_copies, prepared_updates
from shieldnet.training.records import as_records
from shieldnet.training.result import Finetuned
from shieldnet.training.settings import FinetuneSettings, Optimization
from shieldnet.training.several_inputs import taking_several
from shieldnet.training.trainable import BY_NAME, Full, LoRA, Trainable
from shieldnet.training.updates import Sgd
from shieldnet.training.validation import validated
from shieldnet.training.watching import Watch

Verb = TypeVar("Verb", bound=Callable[..., Any])


def _refusing_part(verb: Verb) -> Verb:
    """Refuses the former settings part= and rank=, naming the equivalent train= value."""

    @wraps(verb)
    def checked(*args: Any, **settings: Any) -> Any:
        for old in ("part", "rank"):
            if old in settings:
                value = BY_NAME.get(str(settings.get("part")), LoRA())
                if isinstance(value, LoRA) and settings.get("rank"):
                    value = LoRA(settings["rank"])
                raise ConfigError(f"finetune has no {old}=: pass train=sn.trainable.{value!r}.")
        return verb(*args, **settings)

    return checked  # type: ignore[return-value]  # of the same signature


@_refusing_part
@renamed(batch="batch_size", lr="learning_rate", mend="fix")
def finetune(
    model: nn.Module,
    data: object,
    *countermeasures: Countermeasure,
    epochs: float = 10,
    batch_size: int | None = None,
    learning_rate: float = 0.1,
    momentum: float | None = None,
    optimizer: str = "sgd",
    train: Trainable = Full(),  # noqa: B008 - a frozen value
    start: Literal["public"] | Guarantee | None = None,
    heldout: object = None,
    validation: object = None,
    loss: Callable[..., Tensor] | None = None,
    outputs: str = "logits",
    axis: int | None = None,
    fix: bool = False,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every_s: float = 30.0,
    progress: bool | None = None,
) -> Finetuned:
    """Trains a copy of a model with countermeasures; the original model is not changed.

    data: (inputs, labels) with one row per record, a Dataset, or a plain DataLoader. Several inputs
    are a dict by argument name, ({"input_ids": ..., "attention_mask": ...}, labels), or a tuple.
    Labels may have positions, such as pixels or tokens; the label -100 is ignored.
    countermeasures: ``DPSGD`` for a guarantee; ``Augment``, ``WeightDecay``, ``LabelSmoothing``,
    ``Adversarial`` and others, applied in the given order.
    epochs: number of times that each record is used, on average.
    batch_size: records per step, on average if DPSGD draws them independently. By default the
    loader's own size, else 64; with DPSGD the loader's, else all records, which has the simplest
    proof and often works best.
    learning_rate, momentum: of the optimizer; momentum is for ``sgd`` only, by default 0.9.
    optimizer: ``sgd`` or ``adam`` (with decoupled weight decay).
    train: the weights to train: ``Full()``, ``LastLayer()``, ``Biases()`` or ``LoRA(4)`` of
    ``sn.trainable``.
    start: what the model already knows about the records: ``"public"`` for nothing (a fresh model,
    or one trained on public data), or the ``Guarantee`` that it was trained under, which is
    composed with that of the steps. By default the guarantee covers the steps, not the weights.
    heldout: similar (inputs, labels) that the model never saw. If it fits the training records
    significantly better, ``start="public"`` is refused.
    validation: (inputs, labels) to report loss and accuracy on, before and after; never trained on.
    loss: loss(output, labels) -> (records,), or a torch criterion; by default chosen by ``outputs``
    (logits, probabilities, binary_logits, values) and ``axis`` (of the classes).
    fix: whether to apply the fixes that preflight offers.
    seed: makes training reproducible; the guarantee then says so. By default all draws come from
    the operating system.
    checkpoint: folder, visible to all ranks, in which the state is saved every
    ``checkpoint_every_s`` seconds, and from which an interrupted training continues.
    progress: whether to show a progress bar; by default only on a terminal.

    In a torch process group (``torchrun``), the ranks share every batch and end with the same
    weights and the same guarantee.
    Errors: PreflightFailed for whatever would break the guarantee, with the fix; ConfigError and
    DataError for invalid settings and data; TrainingFailed if weights become non-finite, or if a
    checkpoint belongs to another training, was changed, or was already continued.
    """
    began = time.monotonic()
    require_gradients(model)
    positive("checkpoint_every_s", checkpoint_every_s)
    optimization = Optimization(optimizer, learning_rate, momentum)
    settings = FinetuneSettings(epochs, batch_size, optimization, train, outputs, axis, fix, seed)
    plan = Plan.of(model, as_records(data), countermeasures, settings, loss, start, heldout)
    held = None if validation is None else plan.validation_records(validation)
    before = None if held is None else validated(plan.model, held, plan.plain_loss)
    ranks = Ranks.from_torch()
    with _drawing(seed):
        copies = prepared_copies(plan)
        ranks.sync(copies.working)
        updates, preflight = prepared_updates(plan, copies, ranks)
        claimed = with_variation(plan.claimed, plan.steps * updates.variation)
        checkpointer = Checkpointer.of(checkpoint, checkpoint_every_s, ranks, plan.identity, model)
        watch = Watch(
            claimed, plan.steps, checkpointer.folder, shown=progress, is_first=ranks.is_first
        )
        with checkpointer.only_here(), watch:
            for fixed in () if preflight is None else preflight.fixes:
                watch.tell(f"fix=True has {fixed}")
            state = take_steps(plan, updates, checkpointer, watch)
        ranks.sync(copies.working)
    copies.publish(everything=claimed is None)
    after = None if held is None else validated(copies.finished, held, plan.plain_loss)
    taking_several(copies.finished)
    findings = findings_of_run(claimed, state)
    guarantee = released_guarantee(claimed, plan.premise, copies.finished, state.run)
    return Finetuned(
        copies.finished.eval(),
        guarantee,
        findings,
        preflight,
        plan.steps,
        seconds=time.monotonic() - began,
        start=plan.start,
        before=before,
        validation=after,
        taken=plan.steps - watch.first,
        checkpoint=checkpointer.folder,
        clip=state.clip if plan.private and plan.private.clipping.numbers else None,
        base=model,
        traces=updates.tracing.traces if isinstance(updates, Sgd) and updates.tracing else None,
    )


@contextmanager
def _drawing(seed: int | None) -> Iterator[None]:
    """Draws from the seed, if given, and preserves the global random states."""
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        if seed is None:
            torch.manual_seed(random_seed())
            yield
        else:
            with replayed_noise(seed):
                torch.manual_seed(random_seed())
                yield
