"""How far long work is, for those who wait."""

from types import TracebackType


class Progress:
    """Shows a bar that knows how many steps there are; it leaves nothing behind.

    shown: True or False; None shows it on a terminal alone.
    """

    def __init__(self, steps: int, shown: bool | None = None) -> None:
        from tqdm import tqdm

        hidden = None if shown is None else not shown
        self._bar = tqdm(total=steps, disable=hidden, leave=False, unit="step")
        self._begun = False

    def begin(self, task: str) -> None:
        """Names what begins; what began before it is then done."""
        if self._begun:
            self._bar.update()
        self._begun = True
        self._bar.set_description(task)

    def advance(self, steps: int = 1) -> None:
        """Counts steps as done."""
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
