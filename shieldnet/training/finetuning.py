"""Trains a copy of a model: privately, against attacks, or both."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from shieldnet.core.checks import choice, finite, flag, positive, renamed, whole
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.core.randomness import noise_about, random_seed, replayed_noise
from shieldnet.data.examples import Examples, row_bytes
from shieldnet.data.hashing import weights_hash
from shieldnet.findings.finding import Finding, Threat, decimals
from shieldnet.privacy.calibration import calibrate_noise
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.privacy.one_run_bounds import best_guesses, epsilon_finding, guessed, mu_interval
from shieldnet.running.store import fingerprint
from shieldnet.shield.module import Shield
from shieldnet.training.checkpoint import State, only_here
from shieldnet.training.countermeasures.base import (
    Augment,
    Countermeasure,
    LabelSmoothing,
    WeightDecay,
)
from shieldnet.training.distributed import Ranks
from shieldnet.training.features import features
from shieldnet.training.loop import Course, Keeper, Plain, Private, train
from shieldnet.training.losses import Criterion, Loss, as_loss, scores_of, weighted_mean
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.gradients import RecordGradients
from shieldnet.training.private.hazards import Hazard, fixed, hazards_of, stand_ins
from shieldnet.training.private.preflight import Preflight, examine
from shieldnet.training.private.premise import Premise, fit
from shieldnet.training.records import Records, as_records
from shieldnet.training.trainable import PARTS, choose_part, last_layer, merge, shared_weights

OPTIMIZERS = ("sgd", "adam")
_MOMENTUM = 0.9
_RANK = 4
_TOLD = 10  # times that epsilon so far is told in a run
_WEIGHTED = Hazard(
    "weighted loss",
    "the loss",
    "its mean divides by the weights of the whole batch, so that one record scales all others",
    "Sum it instead (reduction='none'): a record's weight is then its own",
    fixes=True,
)


@dataclass(frozen=True)
class Finetuned:
    """Holds a trained model and what is claimed, and known, of it.

    model: in evaluation mode, with the keys of the model that was given. guarantee: what is proven;
    None without DPSGD, or in its empirical mode. findings: of the audit of the run itself.
    preflight: what was measured before. steps, seconds: what it took. start: what the start is seen
    to know of the records, "" where there was no heldout: as preflight, measured without noise.
    """

    model: nn.Module
    guarantee: Guarantee | None
    findings: tuple[Finding, ...]
    preflight: Preflight | None
    steps: int
    seconds: float
    start: str = ""

    def __str__(self) -> str:
        claimed = "No guarantee is stated." if self.guarantee is None else str(self.guarantee)
        audited = [
            f"  {one.name.removeprefix('one_run.')} at least {decimals(one.low)} "
            f"(95 %, {one.samples} canaries)"
            for one in self.findings
        ]
        head = ["Measured in the run itself:"] if audited else []
        known = [self.start] if self.start else []
        took = f"{self.steps} steps in {self.seconds:.1f} s"
        return "\n".join([took, claimed, *known, *head, *audited])


@dataclass(frozen=True)
class _Settings:
    epochs: float
    batch_size: int | None
    learning_rate: float
    momentum: float | None
    optimizer: str
    part: str
    rank: int | None
    outputs: str
    axis: int | None
    fix: bool
    seed: int | None

    def __post_init__(self) -> None:
        positive("epochs", self.epochs)
        positive("learning_rate", self.learning_rate)
        choice("optimizer", self.optimizer, OPTIMIZERS)
        choice("part", self.part, PARTS)
        if self.momentum is not None:
            if not 0 <= finite("momentum", self.momentum) < 1:
                raise ConfigError(f"Expected momentum from 0 to below 1, got {self.momentum!r}.")
            if self.optimizer != "sgd":
                raise ConfigError(f"The optimizer {self.optimizer} has no momentum: leave it out.")
        if self.rank is not None:
            whole("rank", self.rank, low=1)
            if self.part != "lora":
                raise ConfigError(f"Only part='lora' has a rank, part is {self.part!r}.")
        flag("fix", self.fix)
        if self.batch_size is not None:
            whole("batch_size", self.batch_size, low=1)
        if self.seed is not None:
            whole("seed", self.seed, low=0, high=2**63 - 1)


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
    part: str = "full",
    rank: int | None = None,
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
    (momentum 0.9 unless given) or ``adam`` (decoupled weight decay). part: ``full``, ``last``
    (layer; what goes into it is computed once), ``bias``, or ``lora`` of ``rank`` 4 unless given,
    merged into the weights
    afterwards.
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
    settings = _Settings(
        epochs,
        batch_size,
        learning_rate,
        momentum,
        optimizer,
        part,
        rank,
        outputs,
        axis,
        fix,
        seed,
    )
    positive("checkpoint_every_s", checkpoint_every_s)
    private = _private_of(countermeasures)
    _require_plain_weights(model, private)
    records = _as_read(model, as_records(data))
    size = _size(settings, records, private)
    rate = size / len(records)
    steps = _steps(settings, len(records), size, private)
    ranks = Ranks.here()
    criterion = as_loss(loss, outputs, axis)
    for one in countermeasures:
        criterion = one.criterion(criterion)
    _try_once(model, records, criterion, private)
    course = Course(criterion, countermeasures)
    claimed = None if private is None else _claimed(private, rate, steps, len(records), seed)
    premise = Premise.of(model, start)
    knows = _known(model, premise, records, heldout, as_loss(loss, outputs, axis), claimed)
    with _drawing(seed):
        working, finished = _prepared(model, records, countermeasures, private, settings, loss)
        ranks.agree(working)
        trained, learned = _what_is_learned(working, records, countermeasures, settings)
        preflight, noise = None, 0.0
        learn: Plain | Private = Plain(trained, learned, course, size, ranks)
        if private is not None:
            preflight, gradients = _examined(trained, learned, course, private, settings)
            noise = float((claimed or private).noise_multiplier or 0)
            learn = Private(gradients, learned, private, noise, rate, ranks)
            if claimed is not None:
                claimed = replace(claimed, variation=steps * learn.lattice.variation)
                _require_met(claimed)
        drawn = (size, rate, steps, noise)
        about = (model, records.fingerprint(), countermeasures, settings, loss, ranks.count, start)
        folder = None if checkpoint is None else Path(checkpoint)
        key = fingerprint(*about, drawn) if folder else ""
        keeper = Keeper(folder, key, checkpoint_every_s, ranks, _run(ranks))
        ema = 0.0 if private is None else private.ema
        mine = folder if ranks.is_first else None
        with only_here(mine), _told(steps, claimed, progress, ranks) as tell:
            with_optimizer = _optimizer(trained, settings, countermeasures)
            state = train(trained, learn, steps, with_optimizer, keeper, ema, tell)
        ranks.agree(working)
    _publish(working, finished, everything=claimed is None)
    audited = _audited(claimed, state)
    if claimed is not None:
        claimed = premise.stated(replace(claimed, weights=weights_hash(finished)), state.run)
    return Finetuned(
        finished.eval(), claimed, audited, preflight, steps, time.monotonic() - began, knows
    )


def _require_met(claimed: Guarantee) -> None:
    if math.isinf(claimed.epsilon):
        raise ConfigError(
            f"delta {claimed.delta:g} cannot be met: what is drawn differs from the ideal law by a "
            f"total variation of up to {claimed.variation:.1g}, which counts 1 + e^epsilon times. "
            "Take more noise, or mode='empirical', which states no guarantee."
        )


def _run(ranks: Ranks) -> str:
    """Names this training, the same on every rank."""
    with noise_about("run"):
        words = ranks.told(torch.tensor([random_seed(), random_seed()]))
    return "".join(f"{word:016x}" for word in words.tolist())


def _known(
    model: nn.Module,
    premise: Premise,
    records: Records,
    heldout: object,
    loss: Loss,
    claimed: Guarantee | None,
) -> str:
    """Says what the start is seen to know of the records, "" where nobody looked."""
    if claimed is None:
        if premise.given is not None or heldout is not None:
            raise ConfigError(
                "start= and heldout= are about the guarantee of DPSGD(epsilon or noise, delta): "
                "without it nothing is stated, leave them out."
            )
        return ""
    if heldout is None:
        return ""
    rows = _as_read(model, as_records(heldout))
    if rows.inputs.shape[1:] != records.inputs.shape[1:]:
        raise DataError(
            f"Expected heldout rows of shape {tuple(records.inputs.shape[1:])} as the records "
            f"have, got {tuple(rows.inputs.shape[1:])}."
        )
    ours, theirs = (
        row_bytes(Examples("rows", one.inputs.reshape(len(one), -1))) for one in (records, rows)
    )
    if shared := len(set(ours) & set(theirs)):
        raise DataError(
            f"{shared} of the heldout rows are also records that are trained on: what the start "
            "knows cannot be told by them. Hold other rows of the same kind out."
        )
    found = fit(model, records, rows, loss)
    return premise.check(*found, rows=min(len(records), len(rows)))


def _publish(working: nn.Module, finished: nn.Module, *, everything: bool) -> None:
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


def _as_read(model: nn.Module, records: Records) -> Records:
    """Returns real numbers in the type of the model's weights."""
    kinds = [one.dtype for one in model.parameters() if one.is_floating_point()]
    if not kinds:
        raise ConfigError("Expected a model with weights, got one without.")
    return records.of_type(kinds[0])


def _require_plain_weights(model: nn.Module, private: DPSGD | None) -> None:
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


def _try_once(model: nn.Module, records: Records, criterion: Loss, private: DPSGD | None) -> None:
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


def _size(settings: _Settings, records: Records, private: DPSGD | None) -> int:
    usual = len(records) if private is not None else 64
    return min(len(records), settings.batch_size or records.batch or usual)


def _steps(settings: _Settings, records: int, size: int, private: DPSGD | None) -> int:
    """Counts the steps: exactly those that are taken, whatever a loader's length would say."""
    if private is None:
        return max(1, round(settings.epochs * -(-records // size)))
    return max(1, math.ceil(settings.epochs * records / size - 1e-9))


def _claimed(
    private: DPSGD, rate: float, steps: int, records: int, seed: int | None
) -> Guarantee | None:
    if not private.is_certified:
        return None
    delta = float(private.delta or 0)
    if delta >= 1 / records:
        raise ConfigError(
            f"Expected delta below 1 / {records} records, got {delta:g}: it would allow to publish "
            "one of them whole."
        )
    noise = private.noise_multiplier
    if private.epsilon is not None:
        noise = calibrate_noise(private.epsilon, delta, rate, steps)
    caveats = (
        ()
        if seed is None
        else ("whoever knows the seed knows the noise: seeded runs are for tests",)
    )
    guarantee = Guarantee(float(noise or 0), rate, steps, records, delta, caveats)
    looser = guarantee.cross_check()
    if looser < 0.98 * guarantee.epsilon - 1e-3:  # near 0 the grid of losses is the coarser
        raise ConfigError(
            f"Two accountants disagree: {guarantee.epsilon:.4g} by privacy losses, {looser:.4g} by "
            "Renyi divergences, which cannot be less. Please report this; nothing was trained."
        )
    return guarantee


def _prepared(
    model: nn.Module,
    records: Records,
    countermeasures: Sequence[Countermeasure],
    private: DPSGD | None,
    settings: _Settings,
    loss: object,
) -> tuple[nn.Module, nn.Module]:
    """Returns the copy that is trained, and the form of what is given back."""
    finished, working = copy.deepcopy(model), copy.deepcopy(model)
    choose_part(working, settings.part, settings.rank or _RANK)
    for one in countermeasures:
        one.prepare(working)
    for layer in working.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False  # the same gradient, as rows of numbers
    _set_mode(working, settings.part)
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


def _set_mode(model: nn.Module, part: str) -> None:
    """Puts a model into training mode; with the last layer alone, the others only compute."""
    model.train(part != "last")
    last_layer(model).train()


def _what_is_learned(
    working: nn.Module,
    records: Records,
    countermeasures: Sequence[Countermeasure],
    settings: _Settings,
) -> tuple[nn.Module, Records]:
    """Returns the last layer and what goes into it, where that is all that is trained."""
    simple = all(isinstance(one, DPSGD | WeightDecay | LabelSmoothing) for one in countermeasures)
    if settings.part != "last" or not simple:
        return working, records
    last, tied = last_layer(working), shared_weights(working)
    if any(id(one) in tied for one in last.parameters(recurse=False)):
        return working, records
    found = features(working, last, records.inputs)
    return (working, records) if found is None else (last, Records(found, records.labels))


def _examined(
    trained: nn.Module,
    learned: Records,
    course: Course,
    private: DPSGD,
    settings: _Settings,
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


def _optimizer(
    model: nn.Module, settings: _Settings, countermeasures: Sequence[Countermeasure]
) -> torch.optim.Optimizer:
    weights = [one for one in model.parameters() if one.requires_grad]
    decay = sum(one.weight_decay for one in countermeasures)
    if settings.optimizer == "adam":
        return torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=decay)
    momentum = _MOMENTUM if settings.momentum is None else settings.momentum
    return torch.optim.SGD(
        weights, lr=settings.learning_rate, momentum=momentum, weight_decay=decay
    )


def _audited(claimed: Guarantee | None, state: State) -> tuple[Finding, ...]:
    """Judges the run by its canaries, where there are any: guesses chosen before the scores."""
    count = len(state.coins)
    if claimed is None or not count:
        return ()
    guesses = best_guesses(claimed.mu, count, claimed.delta)
    right = guessed(state.scores, state.coins, guesses)
    threat = Threat(white_box=True, sees="every noisy gradient")
    return (
        epsilon_finding(
            "one_run.epsilon",
            right,
            guesses,
            count,
            claimed.delta,
            claimed=claimed.epsilon,
            threat=threat,
            way="gradient canaries",
        ),
        Finding.of(
            "one_run.mu",
            mu_interval(right, guesses, count),
            samples=count,
            baseline=0.0,
            threat=threat,
            source="Mahloujifar et al. 2024, Algorithm 3; gradient canaries",
            ceiling=claimed.mu,
            note="of Gaussian differential privacy; no bound on epsilon",
        ),
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
