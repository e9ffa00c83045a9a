"""A progress bar for long work, and what is said beside it."""

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Never

if TYPE_CHECKING:
    from tqdm import tqdm

_log = logging.getLogger("shieldnet")


def tell(line: str, bar: "tqdm[Never]") -> None:
    """Logs a line at level INFO, or writes it to stderr where nothing shows the log."""
    if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
        _log.info(line)
    else:
        bar.write(line, file=sys.stderr)


class Progress:
    """Shows a progress bar over a known number of steps, and clears it at the end.

    shown: whether to show it; None shows it only on a terminal. Lines beside it go to the log
    ``shieldnet``, and to stderr where no handler shows that log; nowhere if shown is False.
    """

    def __init__(self, steps: int, shown: bool | None = None) -> None:
        from tqdm import tqdm

        hidden = None if shown is None else not shown
        self._bar = tqdm(total=steps, disable=hidden, leave=False, unit="step")
        self._begun, self._speaks = False, shown is not False

    def begin(self, task: str) -> None:
        """Starts a task and completes the previous one."""
        if self._begun:
            self._bar.update()
        self._begun = True
        self._bar.set_description(task)

    def advance(self, steps: int = 1) -> None:
        """Advances the bar by ``steps``."""
        self._bar.update(steps)

    def tell(self, line: str) -> None:
        """Says a line beside the bar."""
        if self._speaks:
            tell(line, self._bar)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
