"""A chart is a file of data, of which every place is filled."""

import json
from pathlib import Path

import pytest

from shieldnet.gate.policy import Policy
from shieldnet.reports.html.charts import drawing
from shieldnet.reports.report import Report

SAVED = Path(__file__).parents[1] / "saved" / "first.json"
FILES = sorted(Path(drawing.__file__).parent.glob("*.vl.json"))


def places(template: object) -> set[str]:
    if isinstance(template, list):
        return set().union(*map(places, template))
    if not isinstance(template, dict):
        return set()
    own = {template["$"]} if template.keys() == {"$"} else set()
    return own.union(*map(places, template.values()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_chart_names_what_it_shows_for_those_who_cannot_see_it(file: Path) -> None:
    spec = json.loads(file.read_text(encoding="utf-8"))
    assert file.name == "frame.vl.json" or len(spec["description"]) > 30


def test_no_place_of_a_chart_stays_empty() -> None:
    report = Report.load(SAVED).document(Policy())
    charts = drawing.charts(report)
    assert {"bounds", "tradeoff", "columns"} <= charts.keys()
    for chart in charts.values():
        assert not places(chart)
        assert chart["data"]["values"]
        assert chart["params"] == [{"name": "subject", "value": report["subjects"][-1]["name"]}]
