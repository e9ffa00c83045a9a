"""The headline table and the notes under it."""

import pytest
from by_hand import finding, made, subject

from shieldnet.findings.finding import UNREAD
from shieldnet.findings.reading import BY_RANKS, OF_COLUMNS
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
        "6 of the 325 members: they occur in another set too, and were dropped",
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
    assert notes[:4] == [f"not tested: {line}" for line in could[:4]]
    assert f"note: {could[4]}" in report.notes()
    assert len(notes) == 5
    assert notes[4].startswith("not tested: 4 more things do not apply here")
    assert notes[4].endswith(' (report.save("report.html") lists them)')


WORST = "LiRA on class yes, of 2 groups"


def exposed_group(low: float, high: float) -> tuple:
    return (
        finding("accuracy", 0.8, 0.9, baseline=0.85),
        finding("membership.auc", 0.58, 0.676, baseline=0.5),
        finding("membership.worst_group.auc", low, high, baseline=0.5, source=WORST),
    )


def test_the_most_exposed_column_is_named_under_the_table() -> None:
    mean = finding("inversion", 0.0, 0.02)
    debt, age = finding(f"{OF_COLUMNS}debt", 0.1, 0.2), finding(f"{OF_COLUMNS}age", 0.0, 0.01)
    report = made(subject("balanced", 0.0, 1.0, findings=(mean, debt, age)))
    assert report.notes()[0] == "balanced: most exposed column: debt, leakage 0.150 [0.100, 0.200]"
    assert report.passes({"max_leakage": 0.05}).outcome == "pass"
    assert report.passes({"max_column_leakage": 0.05}).outcome == "fail"
    chance = finding(f"{OF_COLUMNS}debt", -0.1, 0.2)
    hidden = made(subject("balanced", 0.0, 1.0, findings=(mean, chance, age)))
    assert "most exposed" not in str(hidden)


def test_the_group_of_which_the_fewest_are_right_is_named_under_the_table() -> None:
    rare = finding("accuracy.group.fraud = 1", 0.2, 0.3)
    common = finding("accuracy.group.fraud = 0", 0.9, 1.0)
    report = made(subject("balanced", 0.0, 1.0, findings=(common, rare)))
    line = "balanced: lowest accuracy of a group: fraud = 1, 0.250 [0.200, 0.300]"
    assert report.notes()[0] == line


def test_how_a_heavy_tailed_column_was_measured_is_said_beside_it() -> None:
    debt = finding(f"{OF_COLUMNS}debt", 0.1, 0.2, note=f"a; {BY_RANKS}")
    report = made(subject("balanced", 0.0, 1.0, findings=(debt,)))
    assert report.notes()[0].endswith(f"debt, leakage 0.150 [0.100, 0.200] ({BY_RANKS})")
    assert BY_RANKS in report.passes({"max_column_leakage": 0.05}).judgments[0].words
    with pytest.raises(KeyError, match="It has: inversion.column.debt"):
        report["balanced"]["inversion.column.debts"]


def test_the_worst_group_is_named_under_the_table() -> None:
    report = made(subject("balanced", 0.0, 1.0, findings=exposed_group(0.716, 0.978)))
    line = "balanced: worst group: class yes, membership AUC 0.847 [0.716, 0.978]"
    assert report.notes()[0] == line
    hidden = made(subject("balanced", 0.0, 1.0, findings=exposed_group(0.49, 0.9)))
    assert "worst group" not in str(hidden)


def test_what_guessing_reaches_is_said_once_under_the_table() -> None:
    found = exposed_group(0.4, 0.6)
    text = str(
        made(subject("bare", 0.0, 9.0, findings=found), subject("b", 0.0, 1, findings=found))
    )
    assert text.count("accuracy of always naming the most frequent class: 0.850") == 1


def test_a_column_holds_the_worst_of_what_its_limit_judges() -> None:
    leaks = (
        finding("inversion", 0.0, 0.1),
        finding("inversion.search", 0.3, 0.36),
        finding("averaging.64", 0.1, 0.2),
    )
    averaged = (finding("inversion", 0.0, 0.1), finding("averaging.64", 0.1, 0.2))
    headers, rows = made(subject("strict", 0.0, 1.0, findings=leaks)).rows()
    assert headers == ["shield", "bits ↓", "leakage ↓"]
    assert rows[0][-1] == "0.330 [0.300, 0.360], by search"
    headers, rows = made(subject("noisy", 0.0, 1.0, findings=averaged)).rows()
    assert (headers[-1], rows[0][-1]) == ("leakage ↓", "0.150 [0.100, 0.200], averaged")
    headers, rows = made(subject("strict", 0.0, 1.0, findings=leaks[1:2])).rows()
    assert (headers[-1], rows[0][-1]) == ("leakage, by search ↓", "0.330 [0.300, 0.360]")
    only_first = made(subject("strict", 0.0, 1.0, findings=leaks[:1])).rows()[1]
    assert only_first[0][-1] == "0.050 [0.000, 0.100]"
