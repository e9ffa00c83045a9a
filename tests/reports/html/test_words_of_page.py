"""What the page says in words, without a browser."""

import json
from dataclasses import replace

import pytest
import vl_convert
from by_hand import made, subject

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
        (0.62, "balanced 62.0% (no significant difference), strict 62.0% (no significant diff"),
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
    assert "Of what the mean input leaves open" in page_text
    assert "Of what the label leaves open" in text_of(made(), tmp_path)


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
