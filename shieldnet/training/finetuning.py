"""Trains a copy of a model: privately, against attacks, or both."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from shieldnet.core.checks import positive, renamed
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import noise_about, random_seed, replayed_noise
from shieldnet.data.hashing import weights_hash
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.running.store import fingerprint
from shieldnet.training.checkpoint import only_here
from shieldnet.training.claims import findings_of_run, guarantee_of, known_of_start, require_met
from shieldnet.training.countermeasures.base import (
    Augment,
    Countermeasure,
)
from shieldnet.training.distributed import Ranks
from shieldnet.training.loop import Course, Keeper, Plain, Private
from shieldnet.training.loop import train as take_steps
from shieldnet.training.losses import as_loss
from shieldnet.training.preparing import (
    as_read,
    gradients_examined,
    prepared_copies,
    publish,
    require_plain_weights,
    try_once,
    what_is_learned,
)
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.premise import Premise
from shieldnet.training.records import Records, as_records
from shieldnet.training.result import Finetuned
from shieldnet.training.settings import FinetuneSettings
from shieldnet.training.trainable import BY_NAME, Full, LoRA, Trainable

T = TypeVar("T", bound=Callable[..., Any])
_MOMENTUM = 0.9
_TOLD = 10  # times that epsilon so far is told in a run


def _refusing_part(verb: T) -> T:
    """Refuses part= and rank= of a verb, with the value that says the same."""

    @wraps(verb)
    def checked(*args: Any, **settings: Any) -> Any:
        for old in ("part", "rank"):
            if old in settings:
                value = BY_NAME.get(str(settings.get("part")), LoRA())
                if isinstance(value, LoRA) and settings.get("rank"):
                    value = LoRA(settings["rank"])
                raise ConfigError(f"finetune has no {old}: say train=sn.trainable.{value!r}.")
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
    loss: Callable[..., Tensor] | None = None,
    outputs: str = "logits",
    axis: int | None = None,
    fix: bool = False,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every_s: float = 30.0,
    progress: bool | None = None,
) -> Finetuned:
    """Trains a copy of a model on some data, with countermeasures; the model is left alone.

    data: (inputs, labels) with a row for each record, a Dataset, or a plain DataLoader. Labels may
    have positions, such as pixels or tokens; -100 counts for nothing.
    countermeasures: ``DPSGD`` for a guarantee; ``Augment``, ``WeightDecay``, ``LabelSmoothing``,
    ``Adversarial`` and others, in the order in which they act.
    batch_size: records of a step, on average where DPSGD draws each by itself; by default the
    loader's, else 64, with DPSGD all records (few steps on all have the simplest proof, and often
    win). epochs: how often each record is used, on average. learning_rate, optimizer: ``sgd``
    (momentum 0.9 unless given) or ``adam`` (decoupled weight decay). train: which weights are
    trained, a value of ``sn.trainable``: ``Full()``, ``LastLayer()``, ``Biases()`` or ``LoRA(4)``.
    start: what the model that is given knows of the records, for the guarantee to be one of the
    weights: ``"public"`` for nothing (a fresh model, or one of public data), or the ``Guarantee``
    that it was trained under, which is composed with the steps'. Without it the guarantee is of
    the steps alone.
    heldout: (inputs, labels) of the same kind that the start never saw: whether it fits the records
    better is tested, and a start that does is not public.
    loss: loss(output, labels) -> one number a record, or a criterion of torch; by default what
    ``outputs`` (logits, probabilities, binary_logits, values) and ``axis`` ask for.
    fix: accepts what preflight offers to fix. seed: for the same model again; without it all
    draws come from the operating system, as a guarantee wants it.
    checkpoint: a folder, seen by all ranks, where the training is kept every so many seconds; it
    goes on from there after a stop. progress: shows a bar; by default on a terminal.

    Where a process group is set up (``torchrun``), the ranks share every batch and end with the
    same weights and the same guarantee.
    Errors: PreflightFailed names what would break the guarantee, and the fix; ConfigError and
    DataError; TrainingFailed where weights stop being finite, or for a checkpoint that is another
    training's, was changed, or was continued already.
    """
    began = time.monotonic()
    settings = FinetuneSettings(
        epochs,
        batch_size,
        learning_rate,
        momentum,
        optimizer,
        train,
        outputs,
        axis,
        fix,
        seed,
    )
    positive("checkpoint_every_s", checkpoint_every_s)
    private = _private_of(countermeasures)
    require_plain_weights(model, private)
    records = as_read(model, as_records(data))
    size = _size(settings, records, private)
    rate = size / len(records)
    steps = _steps(settings, len(records), size, private)
    ranks = Ranks.here()
    criterion = as_loss(loss, outputs, axis)
    for one in countermeasures:
        criterion = one.criterion(criterion)
    try_once(model, records, criterion, private)
    course = Course(criterion, countermeasures)
    claimed = None if private is None else guarantee_of(private, rate, steps, len(records), seed)
    premise = Premise.of(model, start)
    knows = known_of_start(model, premise, records, heldout, as_loss(loss, outputs, axis), claimed)
    with _drawing(seed):
        working, finished = prepared_copies(
            model, records, countermeasures, private, settings, loss
        )
        ranks.agree(working)
        trained, learned = what_is_learned(working, records, countermeasures, settings)
        preflight, noise = None, 0.0
        learn: Plain | Private = Plain(trained, learned, course, size, ranks)
        if private is not None:
            preflight, gradients = gradients_examined(trained, learned, course, private, settings)
            noise = float((claimed or private).noise_multiplier or 0)
            learn = Private(gradients, learned, private, noise, rate, ranks)
            if claimed is not None:
                claimed = replace(claimed, variation=steps * learn.lattice.variation)
                require_met(claimed)
        drawn = (size, rate, steps, noise)
        about = (model, records.fingerprint(), countermeasures, settings, loss, ranks.count, start)
        folder = None if checkpoint is None else Path(checkpoint)
        key = fingerprint(*about, drawn) if folder else ""
        keeper = Keeper(folder, key, checkpoint_every_s, ranks, _run(ranks))
        ema = 0.0 if private is None else private.ema
        mine = folder if ranks.is_first else None
        with only_here(mine), _told(steps, claimed, progress, ranks) as tell:
            with_optimizer = _optimizer(trained, settings, countermeasures)
            state = take_steps(trained, learn, steps, with_optimizer, keeper, ema, tell)
        ranks.agree(working)
    publish(working, finished, everything=claimed is None)
    audited = findings_of_run(claimed, state)
    if claimed is not None:
        claimed = premise.stated(replace(claimed, weights=weights_hash(finished)), state.run)
    return Finetuned(
        finished.eval(), claimed, audited, preflight, steps, time.monotonic() - began, knows
    )


def _run(ranks: Ranks) -> str:
    """Names this training, the same on every rank."""
    with noise_about("run"):
        words = ranks.told(torch.tensor([random_seed(), random_seed()]))
    return "".join(f"{word:016x}" for word in words.tolist())


def _private_of(countermeasures: Sequence[Countermeasure]) -> DPSGD | None:
    for one in countermeasures:
        if not isinstance(one, Countermeasure):
            raise ConfigError(
                f"Expected countermeasures such as DPSGD(...) or WeightDecay(...), got {one!r}."
            )
    found = [one for one in countermeasures if isinstance(one, DPSGD)]
    if len(found) > 1:
        raise ConfigError("Expected DPSGD once at most.")
    if not found:
        return None
    mixing = [one for one in countermeasures if not one.private]
    if mixing and found[0].is_certified:
        raise ConfigError(
            f"{type(mixing[0]).__name__} compares the records of a batch with each other or reads "
            "the model's inside: it does not compose with DPSGD."
        )
    if found[0].augmentations > 1 and not any(isinstance(one, Augment) for one in countermeasures):
        raise ConfigError("Augmentations of a record are all the same without Augment.")
    return found[0]


def _size(settings: FinetuneSettings, records: Records, private: DPSGD | None) -> int:
    usual = len(records) if private is not None else 64
    return min(len(records), settings.batch_size or records.batch or usual)


def _steps(settings: FinetuneSettings, records: int, size: int, private: DPSGD | None) -> int:
    """Counts the steps: exactly those that are taken, whatever a loader's length would say."""
    if private is None:
        return max(1, round(settings.epochs * -(-records // size)))
    return max(1, math.ceil(settings.epochs * records / size - 1e-9))


def _optimizer(
    model: nn.Module, settings: FinetuneSettings, countermeasures: Sequence[Countermeasure]
) -> torch.optim.Optimizer:
    weights = [one for one in model.parameters() if one.requires_grad]
    decay = sum(one.weight_decay for one in countermeasures)
    if settings.optimizer == "adam":
        return torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=decay)
    momentum = _MOMENTUM if settings.momentum is None else settings.momentum
    return torch.optim.SGD(
        weights, lr=settings.learning_rate, momentum=momentum, weight_decay=decay
    )


@contextmanager
def _drawing(seed: int | None) -> Iterator[None]:
    """Draws from a seed where there is one, and leaves the global random states alone."""
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        if seed is None:
            torch.manual_seed(random_seed())
            yield
        else:
            with replayed_noise(seed):
                torch.manual_seed(random_seed())
                yield


@contextmanager
def _told(
    steps: int, claimed: Guarantee | None, progress: bool | None, ranks: Ranks
) -> Iterator[Callable[[int], None]]:
    """Shows a bar, with the epsilon that is spent so far."""
    from tqdm import tqdm

    hidden = None if progress is None else not progress  # by default shown on a terminal
    with tqdm(
        total=steps, unit="step", disable=hidden if ranks.is_first else True, leave=False
    ) as bar:

        def tell(step: int) -> None:
            bar.update(step - bar.n)
            if not bar.disable and claimed is not None and step % max(1, steps // _TOLD) == 0:
                bar.set_postfix(epsilon=f"{replace(claimed, steps=step).epsilon:.3f}")

        yield tell
