"""The published form of a report as JSON: what is written, and what is read back."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from shieldnet.core.errors import DataError
from shieldnet.files.documents import read_json

SCHEMA = "shieldnet.report/1"
_FILE = Path(__file__).parent / "report-1.schema.json"
_MAX_SHOWN_CHARACTERS = 160


@cache
def schema() -> dict[str, Any]:
    """Returns the JSON schema (draft 2020-12) of reports as this version writes them."""
    document: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return document


def parsed(path: str | Path) -> dict[str, Any]:
    """Reads a JSON report and checks it against the schema.

    A report of an earlier 1.x lacks what was added since, and is read all the same.
    Errors: DataError for a file that is missing, no JSON, of another schema, or damaged.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    document = read_json(path, "report")
    came = document.get("schema")
    if came != SCHEMA:
        raise DataError(
            f"Expected a report of schema {SCHEMA} in {path}, got {_short(repr(came))}. A newer "
            "schema needs a newer shieldnet."
        )
    fault = best_match(Draft202012Validator(schema()).iter_errors(document))
    if fault is not None:
        place = "/".join(str(step) for step in fault.absolute_path) or "the document"
        raise DataError(f"The report in {path} is damaged at {place}: {_short(fault.message)}")
    return document


def _short(words: str) -> str:
    return words if len(words) <= _MAX_SHOWN_CHARACTERS else f"{words[:_MAX_SHOWN_CHARACTERS]}..."
