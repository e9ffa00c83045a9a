"""The result of finetune."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from shieldnet.core.errors import ConfigError
from shieldnet.core.statistics import Interval
from shieldnet.files.weights import write_weights
from shieldnet.findings.finding import Finding, decimals
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.training.private.preflight import Preflight
from shieldnet.training.traces import Traces
from shieldnet.training.validation import Validation

WEIGHTS, GUARANTEE = "model.safetensors", "guarantee.json"
"""Files that ``Finetuned.save`` writes."""
_GUESSES = re.compile(r"\d+ of \d+ guesses right")


@dataclass(frozen=True)
class Finetuned:
    """Holds a trained model, its guarantee, and what was measured.

    model: the trained copy, in evaluation mode. Its state_dict has the original's keys, except
    where ``fix=True`` replaced a layer, which ``preflight.fixes`` lists. guarantee: what is proven;
    None without DPSGD or in its empirical mode. findings: of the audit of the run itself.
    preflight: what was measured and fixed before training, without noise; None without DPSGD.
    steps: number of steps. seconds: duration of this run. start: whether the start knows the
    records, tested on ``heldout`` without noise; "" without it. before, validation: loss and
    accuracy of the original and the trained model on the ``validation`` records. taken: number of
    steps that this run took; the others come from a checkpoint. checkpoint: its folder, if any.
    clip: clip norm after the last step, if it adapts. base: the model that training started from,
    as it was given and not copied; an audit of texts compares with it. traces: losses of every
    record over epochs, which tell the trainer what records are at risk; None with DPSGD, in several
    processes, and after fewer than four epochs. ``save`` writes none of them.
    """

    model: nn.Module
    guarantee: Guarantee | None
    findings: tuple[Finding, ...]
    preflight: Preflight | None
    steps: int
    seconds: float
    start: str = ""
    before: Validation | None = None
    validation: Validation | None = None
    taken: int | None = None
    checkpoint: Path | None = None
    clip: float | None = None
    base: nn.Module | None = field(default=None, repr=False)
    traces: Traces | None = None

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Writes model.safetensors and, if a guarantee is stated, guarantee.json, into a folder.

        These are the files that ``shieldnet finetune`` writes, for ``shieldnet audit --weights
        --guarantee``. The same model may be saved again. force: whether to write over another one.
        Returns the folder.
        Errors: ConfigError if the folder has another model and ``force`` is not set; DataError for
        a state_dict with anything but tensors.
        """
        target = Path(folder)
        require_free(target, force=force or self._is_in(target), is_trained=True)
        target.mkdir(parents=True, exist_ok=True)
        write_weights(self.model, target / WEIGHTS)
        (target / GUARANTEE).unlink(missing_ok=True)  # of the model that was there before
        if self.guarantee is not None:
            text = json.dumps(self.guarantee.document(), indent=1)
            (target / GUARANTEE).write_text(text, encoding="utf-8")
        return target

    def _is_in(self, folder: Path) -> bool:
        """Returns whether a folder has the guarantee of this very model: of its run and weights."""
        path = folder / GUARANTEE
        if self.guarantee is None or not path.exists():
            return False
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        own = self.guarantee.document()
        named = ("run", "steps", "weights")
        is_named = isinstance(document, dict) and all(own.get(name) for name in named)
        return is_named and all(document.get(name) == own[name] for name in named)

    def __str__(self) -> str:
        """Returns epsilon, accuracy and what was measured on three lines, then the details."""
        claimed = self.guarantee
        proven = "No guarantee is stated." if claimed is None else f"Proven: {claimed.words}"
        head = [proven, *self._validated, *self._measured]
        steps = f"{self.steps} steps"
        if self.taken is not None and self.taken < self.steps:
            steps += f", {self.taken or 'none'} of them in this run,"
        details = [
            f"{steps} in {self.seconds:.1f} s with their preparation",
            *([f"Checkpoint: {self.checkpoint}"] if self.checkpoint else []),
            *(
                f"fix=True has {fixed}"
                for fixed in (self.preflight.fixes if self.preflight else ())
            ),
            *([f"Clip norm after the last step: {self.clip:.3g}"] if self.clip else []),
            *([self._at_risk] if self._at_risk else []),
            *([self.start] if self.start else []),
            *([str(claimed)] if claimed else []),
        ]
        return "\n".join([*head, "", *details])

    @property
    def _validated(self) -> list[str]:
        before, after = self.before, self.validation
        if before is None or after is None:
            return []
        found = f"loss {decimals(before.loss)} before, {decimals(after.loss)} after"
        if before.accuracy is not None and after.accuracy is not None:
            shares = (_with_interval(one.accuracy) for one in (before, after))
            found = "accuracy {} before, {} after; ".format(*shares) + found
        return [f"Validation: {found} ({after.samples} records)"]

    @property
    def _at_risk(self) -> str:
        if self.traces is None or not (rows := self.traces.exposed.rows):
            return ""
        listed = ", ".join(map(str, rows))
        return f"Records most at risk by their losses (the trainer's view): rows {listed}"

    @property
    def _measured(self) -> list[str]:
        low = {
            finding.name.removeprefix("one_run."): f"at least {decimals(finding.low)}"
            for finding in self.findings
        }
        if not low:
            return []
        canaries = self.findings[0].samples
        right = {finding.name: _GUESSES.search(finding.note) for finding in self.findings}
        any_canaries = ", ".join(
            f"{name} {low[name]}" + (f" ({hits[0]})" if (hits := right[f"one_run.{name}"]) else "")
            for name in ("epsilon", "mu")
        )
        hits = right["one_run.independent.mu"]
        every = f", {hits[0]}" if hits else ""
        return [
            f"Measured in the run itself: {any_canaries} (95%, {canaries} canaries)",
            f"If its canaries are independent: mu {low['independent.mu']}; if the noise is "
            f"Gaussian too: epsilon {low['gaussian.epsilon']} (99.9%{every})",
        ]


def require_free(folder: Path, *, force: bool, is_trained: bool = False) -> None:
    """Raises ConfigError for a folder that has a model, unless it may be written over.

    is_trained: whether the model to write there is trained already.
    """
    if (path := folder / WEIGHTS).exists() and not force:
        kept = "Nothing is lost: the model is in memory, and in its checkpoint if it has one. "
        still = kept if is_trained else ""
        raise ConfigError(
            f"{path} already exists, perhaps with the guarantee of a model that is published. "
            f"{still}Choose another folder; force=True writes over both."
        )


def _with_interval(accuracy: Interval | None) -> str:
    if accuracy is None:
        return "unknown"
    low, high = decimals(accuracy.low), decimals(accuracy.high)
    return f"{decimals(accuracy.value)} [{low}, {high}]"
