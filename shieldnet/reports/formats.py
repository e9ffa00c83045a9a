"""Which form a report takes, told by the name of the file that it goes into."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shieldnet.core.checks import optional
from shieldnet.core.errors import ConfigError
from shieldnet.reports.html.page import page
from shieldnet.reports.markdown import as_card, as_markdown
from shieldnet.reports.pipelines import as_junit, as_sarif

Document = Mapping[str, Any]
CARD = "README.md"
"""The file in which Hugging Face keeps a model card: a section of it is written."""


def as_json(document: Document) -> str:
    """Writes all of a report, in the published schema."""
    return json.dumps(document, indent=1, allow_nan=False)


_FORMS: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        ".json": as_json,
        ".html": page,
        ".md": as_markdown,
        ".xml": as_junit,
        ".sarif": as_sarif,
    }
)


def check_target(path: str | Path) -> Path:
    """Returns the path if a report can be written there; raises before hours of attacks are run.

    Errors: ConfigError for an unknown ending or a missing folder, MissingDependency.
    """
    target = Path(path)
    if target.suffix not in _FORMS:
        raise ConfigError(
            f"Expected a file name that ends in {', '.join(_FORMS)}; got {target.name}."
        )
    if not target.parent.is_dir():
        raise ConfigError(f"Cannot write {target}: there is no folder {target.parent}.")
    if target.suffix == ".html":
        optional("vl_convert", extra="html")
    if target.name == CARD:
        optional("huggingface_hub", extra="card")
    return target


def write(document: Document, path: Path) -> None:
    """Writes a report document in the form that the file's name asks for."""
    target = check_target(path)
    if target.name == CARD:
        text = as_card(document, target.read_text(encoding="utf-8") if target.exists() else "")
    else:
        text = _FORMS[target.suffix](document)
    target.write_text(text, encoding="utf-8")
