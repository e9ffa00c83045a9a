"""The headline table and the notes under it."""

from by_hand import finding, made, subject

from shieldnet.findings.finding import UNREAD
from shieldnet.reports.untested import parted

GAINS = (
    finding("accuracy", 0.92, 0.96),
    finding("attribute.job.gain", 0.0, 0.0, note=f"AUC, less 0.5; {UNREAD}"),
    finding("attribute.sex.gain", 0.1, 0.2),
    finding("inversion", 0.0, 1.0),
)


def test_every_sensitive_column_that_was_asked_for_has_its_own() -> None:
    headers, rows = made(subject("strict", 0.0, 1.0, findings=GAINS)).rows()
    assert headers[-2:] == ["job: attribute gain ↓", "sex: attribute gain ↓"]
    assert rows[0][-2:] == ["0.000 [0.000, 0.000]", "0.150 [0.100, 0.200]"]


def test_the_better_direction_stands_in_every_header() -> None:
    report = made(subject("strict", 0.0, 1.0, findings=GAINS))
    assert report.rows()[0][:4] == ["shield", "bits ↓", "accuracy ↑", "leakage ↓"]
    assert "↓ lower is better, ↑ higher is better" in str(report)


def test_a_number_that_says_less_than_it_seems_is_noted_under_the_table() -> None:
    text = str(made(subject("strict", 0.0, 1.0, findings=GAINS)))
    assert f"strict: job: attribute gain 0.000 [0.000, 0.000]: {UNREAD}" in text
    assert "strict: leakage 0.500 [0.000, 1.000]: the interval spans the whole range" in text


def test_what_could_have_been_tested_stands_before_what_does_not_apply() -> None:
    could = [
        "membership.tpr_at_fpr_1e-2: it takes 300 nonmembers, there are 297",
        "attribute recovery: name the columns: sensitive=(...)",
        "inversion: it needs auxiliary data: pass auxiliary=...",
        "one run: the model comes without a guarantee of its training (--guarantee)",
        "6 of the 325 members: they stand in another set too, and were dropped",
    ]
    other = [
        "timing and other side channels",
        "averaging: the shield gives the same answer every time",
        "attribution: the model's output has no gradient with respect to its input",
        "attribute recovery: it needs a table: inputs of two axes",
    ]
    assert parted([*other, *could]) == (could, other)
    report = made(subject("strict", 0.0, 1.0, untested=(*other, *could)))
    notes = [note for note in report.notes() if note.startswith("not tested: ")]
    assert notes[:5] == [f"not tested: {line}" for line in could]
    assert len(notes) == 6
    assert notes[5].startswith("not tested: 4 more things do not apply here")
