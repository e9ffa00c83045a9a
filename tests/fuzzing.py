"""What the tests that damage files share."""

import json
from typing import Any

from hypothesis import HealthCheck, settings

relaxed = settings(suppress_health_check=list(HealthCheck))


def with_another_value(
    text: str | bytes, where: tuple[str | int, ...], value: object, drop: bool
) -> Any:
    """Returns a document of JSON with another value at a place, or nothing there."""
    document = json.loads(text)
    inner = document
    for step in where[:-1]:
        inner = inner[step]
    if drop:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    return document
