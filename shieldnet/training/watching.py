"""What a training says of itself while it runs: a progress bar, and lines in the log."""

import logging
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from shieldnet.privacy.cost import rounded_up
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.running.progress import tell

_log = logging.getLogger("shieldnet")
_EPSILON_SHOWN = 10  # times per run that the epsilon spent is updated


class Watch:
    """Shows how far a training is; on the first process only.

    Lines go to the log ``shieldnet`` at level INFO, and to stderr where no handler shows that log.
    claimed: the guarantee of all steps, if any. steps: number of them. folder: of checkpoints, if
    any. shown: whether to show a bar and lines; by default a bar only on a terminal.
    """

    def __init__(
        self,
        claimed: Guarantee | None,
        steps: int,
        folder: Path | None,
        *,
        shown: bool | None,
        is_first: bool,
    ) -> None:
        from tqdm import tqdm

        self.claimed, self.steps, self.folder = claimed, steps, folder
        self.speaks = is_first and shown is not False
        hidden = None if shown is None else not shown  # None: by default shown on a terminal
        self.bar = tqdm(total=steps, unit="step", disable=hidden if is_first else True, leave=False)
        self.first = self.at = 0
        self.saved: int | None = None

    def begin(self, step: int) -> None:
        """Starts at a step, above 0 if a checkpoint is continued."""
        self.first = self.at = self.bar.initial = self.bar.n = step
        self.saved = step or None
        if 0 < step < self.steps:
            self.tell(f"continuing from step {step} of {self.steps}, saved in {self.folder}")
        elif step:
            self.tell(f"already complete: all {self.steps} steps are taken from {self.folder}")

    def kept(self, step: int) -> None:
        """Notes that a checkpoint was saved, and says so of the first before the end."""
        is_first = self.saved is None
        self.saved = self.at = step  # before it is said: Ctrl+C comes as soon as it is read
        if is_first and step < self.steps:
            self.tell(f"first checkpoint saved at step {step} of {self.steps}, in {self.folder}")

    def took(self, step: int) -> None:
        """Notes that so many steps were taken; shows the epsilon spent ten times per run."""
        self.at = step
        self.bar.update(step - self.bar.n)
        if step % max(1, self.steps // _EPSILON_SHOWN) and step != self.steps:
            return
        claimed = self.claimed
        spent = "" if claimed is None else rounded_up(replace(claimed, steps=step).epsilon, 3)
        if not self.bar.disable:
            self.bar.set_postfix({"epsilon": spent} if spent else {})
        elif self.speaks:
            so_far = f", epsilon {spent} so far" if spent else ""
            _log.info("step %d of %d%s", step, self.steps, so_far)

    def tell(self, line: str) -> None:
        """Logs a line, or writes it to stderr where nothing shows the log."""
        if self.speaks:
            tell(line, self.bar)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        if isinstance(error, KeyboardInterrupt):
            self.tell(f"Stopped at step {self.at} of {self.steps}{self._left}")

    @property
    def _left(self) -> str:
        """Returns what is left of a training that is stopped now."""
        if self.folder is None:
            return "; without a checkpoint folder, nothing was kept."
        if self.saved is None:
            return ", before the first checkpoint; the same command starts over."
        return f"; the same command resumes from step {self.saved}, saved in {self.folder}."
