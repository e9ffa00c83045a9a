"""Which form a report takes, told by the name of the file that it goes into."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shieldnet.core.checks import optional
from shieldnet.core.errors import ConfigError
from shieldnet.reports.html.page import page
from shieldnet.reports.junit import as_junit
from shieldnet.reports.markdown import as_card, as_markdown
from shieldnet.reports.sarif import as_sarif

Document = Mapping[str, Any]
CARD = "README.md"
"""The file in which Hugging Face keeps a model card: a section of it is written."""


def as_json(document: Document) -> str:
    """Writes all of a report, in the published schema."""
    return json.dumps(document, indent=1, allow_nan=False)


@dataclass(frozen=True)
class Format:
    """Says how a report is written under one ending, and which optional package that takes.

    write: of a report's document. needs: a module and the extra that installs it. judges: whether
    it holds the policy's judgments and nothing else.
    """

    write: Callable[[Any], str]
    needs: tuple[str, str] | None = None
    judges: bool = False


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        ".json": Format(as_json),
        ".html": Format(page, needs=("vl_convert", "html")),
        ".md": Format(as_markdown),
        ".xml": Format(as_junit, judges=True),
        ".sarif": Format(as_sarif, judges=True),
    }
)
"""By the ending of a file's name. A new form takes a file and a line here."""


def check_target(path: str | Path, *, is_judged: bool = True) -> Path:
    """Returns the path if a report can be written there; raises before hours of attacks are run.

    is_judged: whether there is a policy.
    Errors: ConfigError for an unknown ending, a missing folder, or a form that needs a policy;
        MissingDependency.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ConfigError(
            f"Expected a file name that ends in {', '.join(FORMATS)}; got {target.name}."
        )
    if FORMATS[target.suffix].judges and not is_judged:
        raise ConfigError(
            f"{target.name} has a test for each limit of a policy, and no policy was given: "
            "it would pass whatever was measured. Give --policy FILE or --policy default "
            "(policy= in Python)."
        )
    if not target.parent.is_dir():
        raise ConfigError(
            f"Cannot write {target}: there is no folder {target.parent}. Make it with: mkdir -p "
            f"{target.parent}"
        )
    needs = ("huggingface_hub", "card") if target.name == CARD else FORMATS[target.suffix].needs
    if needs is not None:
        optional(needs[0], extra=needs[1])
    return target


def write(document: Document, path: Path) -> None:
    """Writes a report document in the form that the file's name asks for."""
    is_judged = any(report["outcome"] != "not judged" for report in document["reports"])
    target = check_target(path, is_judged=is_judged)
    if target.name == CARD:
        text = as_card(document, target.read_text(encoding="utf-8") if target.exists() else "")
    else:
        text = FORMATS[target.suffix].write(document)
    target.write_text(text, encoding="utf-8")
