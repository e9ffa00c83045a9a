"""What a reader must be told beside a number: that it says nothing, or why it does not vary."""

from shieldnet.findings.finding import NO_USE, UNREAD

BY_LABEL = "no decoder was surely better than the label alone, so the adversary uses the label"
"""The note of an inversion whose adversary does not use the answers."""
FEW_CLASSES = "too few classes for a narrow interval"
"""Ends the note of a measurement whose samples are the classes."""
_SAYS_NOTHING = "the interval spans the whole range, so it says nothing"
_NO_VARIATION = "it is the same in every resample"


def caveat(low: float, high: float, note: str) -> str:
    """Returns what must stand beside a number, or nothing.

    low, high: the ends of its interval. note: the note of the finding.
    """
    if low <= 0.0005 and high >= 0.9995:
        return f"{FEW_CLASSES}: it says nothing" if FEW_CLASSES in note else _SAYS_NOTHING
    for known in (NO_USE, UNREAD, BY_LABEL, FEW_CLASSES):
        if known in note:
            return known
    return _NO_VARIATION if low == high else ""
