"""Output whose reader may leave, as ``head`` does: the command goes on to its end and exit code."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def patient_output() -> Iterator[None]:
    """Discards what is still to be printed once the reader of stdout or of stderr has left."""
    kept = sys.stdout, sys.stderr
    # A stream that was closed before the start is None.
    patient = [None if stream is None else _Patient(stream) for stream in kept]
    sys.stdout, sys.stderr = patient
    try:
        yield
    finally:
        for stream in filter(None, patient):
            with suppress(OSError, ValueError):  # what cannot be written is said as Python ends
                stream.flush()
        sys.stdout, sys.stderr = kept


class _Patient:
    """Writes to a stream until its reader leaves."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes text; returns its length even if it is discarded."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._give_up()

    def _give_up(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
