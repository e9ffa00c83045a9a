"""A progress bar for long work."""

from types import TracebackType


class Progress:
    """Shows a progress bar over a known number of steps, and clears it at the end.

    shown: whether to show it; None shows it only on a terminal.
    """

    def __init__(self, steps: int, shown: bool | None = None) -> None:
        from tqdm import tqdm

        hidden = None if shown is None else not shown
        self._bar = tqdm(total=steps, disable=hidden, leave=False, unit="step")
        self._begun = False

    def begin(self, task: str) -> None:
        """Starts a task and completes the previous one."""
        if self._begun:
            self._bar.update()
        self._begun = True
        self._bar.set_description(task)

    def advance(self, steps: int = 1) -> None:
        """Advances the bar by ``steps``."""
        self._bar.update(steps)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
