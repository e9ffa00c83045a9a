"""The result of finetune."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from shieldnet.core.errors import ConfigError
from shieldnet.core.statistics import Interval
from shieldnet.files.weights import write_weights
from shieldnet.findings.finding import Finding, decimals
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.training.private.preflight import Preflight
from shieldnet.training.validation import Validation

WEIGHTS, GUARANTEE = "model.safetensors", "guarantee.json"
"""Files that ``Finetuned.save`` writes."""


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
    as it was given and not copied; an audit of texts compares with it.
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

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Writes model.safetensors and, if a guarantee is stated, guarantee.json, into a folder.

        These are the files that ``shieldnet finetune`` writes, for ``shieldnet audit --weights
        --guarantee``. force: whether to write over an earlier model. Returns the folder.
        Errors: ConfigError if the folder has a model and ``force`` is not set; DataError for a
        state_dict with anything but tensors.
        """
        target = Path(folder)
        require_free(target, force=force)
        target.mkdir(parents=True, exist_ok=True)
        write_weights(self.model, target / WEIGHTS)
        (target / GUARANTEE).unlink(missing_ok=True)  # of the model that was there before
        if self.guarantee is not None:
            text = json.dumps(self.guarantee.document(), indent=1)
            (target / GUARANTEE).write_text(text, encoding="utf-8")
        return target

    def __str__(self) -> str:
        """Returns epsilon, accuracy and what was measured on three lines, then the details."""
        claimed = self.guarantee
        proven = "No guarantee is stated." if claimed is None else f"Proven: {claimed.words}"
        head = [proven, *self._validated, *self._measured]
        steps = f"{self.steps} steps"
        if self.taken is not None and self.taken < self.steps:
            steps += f", {self.taken or 'none'} of them in this run,"
        details = [
            f"{steps} in {self.seconds:.1f} s",
            *([f"Checkpoint: {self.checkpoint}"] if self.checkpoint else []),
            *(
                f"fix=True has {fixed}"
                for fixed in (self.preflight.fixes if self.preflight else ())
            ),
            *([f"Clip norm after the last step: {self.clip:.3g}"] if self.clip else []),
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
    def _measured(self) -> list[str]:
        bounds = [
            f"{finding.name.removeprefix('one_run.')} at least {decimals(finding.low)}"
            for finding in self.findings
        ]
        if not bounds:
            return []
        canaries = self.findings[0].samples
        return [f"Measured in the run itself: {', '.join(bounds)} (95%, {canaries} canaries)"]


def require_free(folder: Path, *, force: bool) -> None:
    """Raises ConfigError for a folder that has a model, unless it may be written over."""
    if (path := folder / WEIGHTS).exists() and not force:
        raise ConfigError(
            f"{path} already exists, perhaps with the guarantee of a model that is published; "
            "force=True writes over both."
        )


def _with_interval(accuracy: Interval | None) -> str:
    if accuracy is None:
        return "unknown"
    low, high = decimals(accuracy.low), decimals(accuracy.high)
    return f"{decimals(accuracy.value)} [{low}, {high}]"
