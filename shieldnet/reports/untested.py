"""What was not tested: first what another audit could, then what does not apply."""

import re
from collections.abc import Sequence

from shieldnet.reports.subject import Subject

# What can be given, asked for or changed; every other line is about the model or out of reach.
_COULD = re.compile(
    r"--\w|\b\w+=|\b[pP]ass \w|\bit takes (?!four features)|\bneeds (?!a table)|\bname the\b"
    r"|\btoo few\b|\bdropped\b|\bexchanged\b|\balmost nothing\b|\bdraw both\b|\bare right on\b"
    r"|\bwere searched\b|\bhardly any\b"
)


_NOTE = re.compile(r": they occur in another set too.* were dropped$|^token \d+ may be padding: ")


def labeled(line: str) -> str:
    """Writes a line as it is printed: most say what was not tested, others are notes."""
    return f"{'note' if _NOTE.search(line) else 'not tested'}: {line}"


def untested_lines(subjects: Sequence[Subject]) -> list[str]:
    """Lists what was not tested, each line once, naming the shields where it is not all of them.

    What another audit could test comes first.
    """
    concerned: dict[str, list[str]] = {}
    for subject in subjects:
        for line in subject.untested:
            concerned.setdefault(line, []).append(subject.name)
    lines = [
        line if len(names) == len(subjects) else f"{line} ({', '.join(names)})"
        for line, names in concerned.items()
    ]
    could, other = parted(lines)
    return [*could, *other]


def parted(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides lines into what more data or settings could test, and what does not apply.

    It changes the order in which a reader sees them, and nothing else.
    """
    could = [line for line in lines if _COULD.search(line)]
    return could, [line for line in lines if line not in could]
