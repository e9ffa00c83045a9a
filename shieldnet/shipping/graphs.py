"""The graphs of a folder."""

from typing import Any

from torch import nn

from shieldnet.shipping.contents import Contents
from shieldnet.shipping.verification import Checked


def check_graphs(contents: Contents, network: nn.Module | None, example: Any) -> Checked:
    """Says of the shield's graphs that they were only hashed."""
    held = [name for name, holds in contents.description.graphs.items() if holds == "shield"]
    if not held:
        return Checked("graphs", "pass", "there is none, as described")
    return Checked("graphs", "not checked", f"{', '.join(sorted(held))}: only hashed")
