"""What a policy judged, under names that stay the same from run to run."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shieldnet.gate.judging import Judgment, helps

Document = Mapping[str, Any]
_FIELDS = ("limit", "outcome", "words", "finding", "helps")

# What XML 1.0 cannot hold, even escaped.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def judged_subjects(report: Document) -> Iterator[Document]:
    """Lists the shields that the policy judges: the bare model only where it is alone."""
    subjects: Sequence[Document] = report["subjects"]
    return (part for part in subjects if part["name"] != "bare" or len(subjects) == 1)


def advice_of(report: Document) -> list[str]:
    """Lists what can be done about limits that are not met, each advice once."""
    judgments = [
        Judgment(*(judgment.get(name, "") for name in _FIELDS))
        for subject in judged_subjects(report)
        for judgment in subject["verdict"]["judgments"]
    ]
    return helps(judgments)


def unique_names(names: Iterable[str]) -> list[str]:
    """Numbers the second and later ones of equal names, in the policy's order."""
    taken: set[str] = set()
    apart = []
    for name in map(writable, names):
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name} ({number})"
        taken.add(unique)
        apart.append(unique)
    return apart


def writable(text: str) -> str:
    """Returns a text that XML can hold."""
    return _UNWRITABLE.sub("\ufffd", text)
