"""What the page says in words, without a browser."""

import json
from dataclasses import replace

import pytest
import vl_convert
from by_hand import finding, made, subject

from shieldnet.findings.finding import Exposed
from shieldnet.gate.policy import Policy
from shieldnet.reports.html.charts.drawing import charts
from shieldnet.reports.report import Report, save


def text_of(report: Report, tmp_path) -> str:
    save([report], tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (0.03, "balanced 3.0%, strict 3.0%."),
        (
            0.62,
            "balanced 62.0% (no significant difference from the bare model), strict 62.0% (no si",
        ),
        (0.70, "balanced 70.0%, strict 70.0%."),
    ],
)
def test_the_headline_says_where_a_shield_makes_no_significant_difference(
    tmp_path, left, words
) -> None:
    subjects = (
        subject("bare", 0.6, float("inf")),
        subject("balanced", left, 5),
        subject("strict", left, 3),
    )
    assert words in text_of(made(*subjects), tmp_path)


def test_the_headline_of_an_embedder_does_not_speak_of_labels(tmp_path) -> None:
    page_text = text_of(replace(made(), kind="embeddings"), tmp_path)
    assert "Beyond the mean input, the best attack recovers 60.0%" in page_text
    assert "Beyond the label, the best attack recovers 60.0%" in text_of(made(), tmp_path)


def test_the_page_says_what_helps_and_what_is_judged(tmp_path) -> None:
    report = made(subject("bare", 0.6, float("inf")), subject("balanced", 0.3, 5))
    policy = Policy({"max_leakage": 0.1, "min_accuracy": 0.9}, ("accuracy",))
    save([report], tmp_path / "page.html", policy)
    text = (tmp_path / "page.html").read_text()
    assert "The policy is broken: 1 of 3 limits fails." in text
    assert "balanced: inversion 0.300 [0.280, 0.320], max_leakage" in text
    assert text.count("broken by at least 0.18") == 2  # above, and under what decided
    assert "<li>max_leakage: Release less per answer" in text
    assert "<code>min_accuracy = 0.9</code>, <code>required accuracy</code>." in text
    assert '<span class="soft">not judged</span>' in text
    assert "no bound<small>proven" in text


def test_columns_are_folded_and_empty_intervals_are_marked(tmp_path) -> None:
    columns = [finding(f"inversion.column.{n}", 0.0, 1.0) for n in range(3)]
    text = text_of(made(subject("strict", 0.1, 3.3, findings=tuple(columns))), tmp_path)
    assert "Leakage of each column by itself: 3 findings" in text
    assert text.count("the interval spans the whole range, so it says nothing") >= 3


def test_exposed_records_are_counted_not_rated(tmp_path) -> None:
    counted = Exposed("membership.auc", "members", (91, 243, 7), (0, 0, 1), "of 350 nonmembers")
    text = text_of(made(subject("strict", 0.1, 3.3, exposed=(counted,))), tmp_path)
    assert "rows 91, 243: 0 of 350 nonmembers; row 7: 1 of 350 nonmembers" in text


@pytest.mark.parametrize("chart", ["roc", "bounds"])
def test_a_chart_has_a_key_to_its_colors_and_dashes(chart) -> None:
    """The key of the curves was drawn in transparent, and that of the colors not at all."""
    drawn = charts(made().document(Policy()))[chart]
    keys = vl_convert.vegalite_to_vega(drawn)["legends"]
    assert any(key.get("stroke") or key.get("fill") for key in keys)
    assert "transparent" not in json.dumps(keys)


def test_the_page_explains_every_word_of_the_curves(tmp_path) -> None:
    text = text_of(made(), tmp_path)
    for word in ("records", "pooled", "canaries"):
        assert f"<em>{word}</em>: " in text
    assert '<th scope="col">so</th>' not in text


def test_one_shield_has_a_sentence_of_its_own(tmp_path) -> None:
    pair = made(subject("bare", 0.6, float("inf")), subject("balanced", 0.61, 5))
    text = text_of(pair, tmp_path)
    words = "Behind balanced it recovers 61.0%; the difference from the bare model is not signific"
    assert words in text
    assert "Behind balanced it recovers 3.0%." in text_of(made(), tmp_path)


def test_answers_that_name_a_record_are_in_the_headline(tmp_path) -> None:
    found = [
        (finding("inversion", -0.1, 0.1), finding("reidentification", high - 0.02, high))
        for high in (1.0, 0.03)
    ]
    pair = made(
        subject("bare", 0, float("inf"), findings=found[0]),
        subject("balanced", 0, 5, findings=found[1]),
    )
    words = (
        "No attack reconstructed the input, but the answers tell which of 400 records it was: "
        "bare 99%, balanced 2%."
    )
    assert words in text_of(pair, tmp_path)


def test_records_of_which_nothing_is_given_away_are_left_out(tmp_path) -> None:
    some = Exposed("inversion", "nonmembers", (4, 5), (0.3, 0.0), "a share")
    none = Exposed("averaging.64", "nonmembers", (6,), (0.0,), "a share")
    text = text_of(made(subject("strict", 0.1, 3.3, exposed=(some, none))), tmp_path)
    assert "row 4: 0.300" in text
    assert "row 5" not in text
    assert "rows 4, 5" not in text
    assert '<th scope="row">averaging.64</th>' not in text


def test_a_limit_that_judges_two_findings_is_one_limit(tmp_path) -> None:
    two = (finding("inversion", 0.0, 0.05), finding("averaging.64", 0.0, 0.05))
    report = made(subject("strict", 0.1, 3.3, findings=(*two, finding("accuracy", 0.95, 0.97))))
    save([report], tmp_path / "page.html", Policy({"max_leakage": 0.1, "min_accuracy": 0.9}))
    assert "all 2 limits, by whole intervals" in (tmp_path / "page.html").read_text()


def test_columns_are_drawn_among_the_bounds_only_where_they_decided() -> None:
    names = [f"inversion.column.c{number}" for number in range(30)]
    leaks = tuple(finding(name, 0.0, 0.3 if name.endswith("c7") else 0.1) for name in names)
    report = made(subject("balanced", 0.0, 1.0, findings=(finding("inversion", 0, 0.1), *leaks)))
    bounds = json.dumps(charts(report.document(Policy({"max_column_leakage": 0.2})))["bounds"])
    assert "leakage of a column: c7" in bounds
    assert "leakage of a column: c8" not in bounds


def test_the_key_of_the_bounds_explains_no_row_that_is_not_drawn(tmp_path) -> None:
    text = text_of(made(), tmp_path)
    assert "baseline: without the answer</li>" in text
    bounds = json.dumps(charts(made().document(Policy({"max_leakage": 0.1})))["bounds"])
    assert "\\u2191" not in bounds
    broken = made().document(Policy({"min_accuracy": 0.99}))
    assert "\\u2191 higher is better" in json.dumps(charts(broken)["bounds"])
