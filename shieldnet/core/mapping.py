"""Mapping a function over records or models without torch's remarks on its speed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shieldnet.core.checks import unwarned


@contextmanager
def quiet_mapping() -> Iterator[None]:
    """Silences the warnings that ``torch.vmap`` maps an operator by a loop; do not nest.

    Of a graph's operators they go to stderr and are no warnings of Python.
    """
    warn = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    warn(False)
    try:
        with unwarned("There is a performance drop"):
            yield
    finally:
        warn(True)
