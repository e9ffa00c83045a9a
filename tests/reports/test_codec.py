import json
from dataclasses import replace
from pathlib import Path

import pytest
from by_hand import GUARANTEE, SAVED, made
from jsonschema import Draft202012Validator

import shieldnet as sn
from shieldnet.reports.codec import SCHEMA, parsed, schema


def saved(report, path: Path) -> dict:
    report.save(path)
    return json.loads(path.read_text())


def test_the_published_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema())


def test_every_written_report_fits_it(report, pictured, tmp_path) -> None:
    for one in (report, pictured):
        document = saved(one, tmp_path / "report.json")
        Draft202012Validator(schema()).validate(document)
        assert document["schema"] == SCHEMA


def test_every_field_that_is_written_is_described(pictured, tmp_path) -> None:
    document = saved(pictured, tmp_path / "report.json")["reports"][0]
    described = schema()["$defs"]
    assert set(document) == set(described["report"]["properties"])
    assert set(document["subjects"][0]) == set(described["subject"]["properties"])
    certificate = described["subject"]["properties"]["certificate"]["properties"]
    assert set(document["subjects"][0]["certificate"]) == set(certificate)
    assert set(document["subjects"][0]["findings"][0]) == set(described["finding"]["properties"])
    assert set(document["evidence"][0]) == set(described["evidence"]["properties"])


def test_a_report_comes_back_as_it_was(pictured, tmp_path) -> None:
    document = saved(pictured, tmp_path / "report.json")
    again = sn.Report.load(tmp_path / "report.json")
    assert again.guarantee == pictured.guarantee
    assert again["open"].curves == pictured["open"].curves
    assert again["open"].exposed == pictured["open"].exposed
    assert again["open"].findings == pictured["open"].findings
    assert saved(again, tmp_path / "again.json") == document


def test_a_certificate_comes_back_with_its_positions_and_its_reasons(report, tmp_path) -> None:
    words = {
        "positions": 64,
        "size": "5 classes of map",
        "unbounded": "scores is released as it is",
    }
    for subject in report.subjects:
        stated = replace(subject.certificate, **words)
        one = replace(report, subjects=(replace(subject, certificate=stated),))
        saved(one, tmp_path / "report.json")
        again = sn.Report.load(tmp_path / "report.json").subjects[0].certificate
        assert again == stated
        assert "5 classes of map at 64 positions" in str(again)


def test_a_report_of_the_first_version_still_loads(tmp_path) -> None:
    """It was written before subgroups, curves, exposed records and durations were there."""
    report = sn.Report.load(SAVED)
    assert [subject.name for subject in report.subjects] == ["bare", "noisy"]
    assert report["noisy"].certificate.mu == pytest.approx(10)
    assert report["noisy"].curves == {}
    for name in ("page.html", "report.md", "report.xml", "report.sarif", "report.json"):
        report.save(tmp_path / name, "default")
    assert sn.Report.load(tmp_path / "report.json").findings == report.findings


def test_no_record_and_no_answer_is_in_it_unless_pictures_were_asked_for(
    digits_model, digits_split, tmp_path
) -> None:
    sets = {name: getattr(digits_split, name) for name in ("members", "nonmembers", "auxiliary")}
    report = sn.audit(sn.harden(digits_model), **sets, tier="quick", shadows=0)
    document = saved(report, tmp_path / "report.json")["reports"][0]
    assert document["inputs"] is None
    for subject in document["subjects"]:
        assert subject["reconstructions"] is None
        assert set(subject["features"]) <= {"recovered", "leak map", "null map"}
    assert report["bare"].exposed[0].role in ("members", "nonmembers")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: d.update(schema="shieldnet.report/2"), "got 'shieldnet.report/2'. A newer sch"),
        (lambda d: d.pop("schema"), "Expected a report of schema shieldnet.report/1 in .*, got No"),
        (lambda d: d["reports"][0].pop("seed"), "damaged at reports/0: 'seed' is a required prop"),
        (lambda d: d.update(reports=[]), "Expected a report in .*, got none"),
        (lambda d: d.update(reports=d["reports"] * 2), "exactly one report in .*, got 2"),
        (
            lambda d: d["reports"][0]["subjects"][0]["findings"][0].update(low=2.0),
            "Expected accuracy between its bounds, got 2.0 above",
        ),
        (
            lambda d: d["reports"][0]["subjects"][0]["findings"][0].update(value="high"),
            "damaged at reports/0/subjects/0/findings/0/value: 'high' is not of type 'number'",
        ),
        (
            lambda d: d["reports"][0]["subjects"][0]["features"].update(ragged=[[1], [1, 2]]),
            "The report in .* is damaged",
        ),
        (lambda d: d["reports"][0].update(subjects=[]), r"reports/0/subjects: \[\]"),
        (
            lambda d: d["reports"][0].update(subjects=d["reports"][0]["subjects"][:1] * 2),
            r"Expected shields of different names, got \['bare', 'bare'\]",
        ),
    ],
)
def test_a_damaged_report_is_refused_at_its_place(report, tmp_path, damage, words) -> None:
    path = tmp_path / "report.json"
    document = saved(report, path)
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(sn.errors.DataError, match=words):
        sn.Report.load(path)


def test_a_forged_guarantee_of_absurd_numbers_is_refused_when_it_is_asked(tmp_path) -> None:
    """Counting its losses would take more memory than there is."""
    path = tmp_path / "report.json"
    document = saved(made(guarantee=GUARANTEE), path)
    document["reports"][0]["guarantee"].update(noise=0.1, rate=0.5, steps=10**7, epsilon=0.1)
    path.write_text(json.dumps(document))
    report = sn.Report.load(path)
    with pytest.raises(sn.errors.ConfigError, match="in the thousands and guarantee nothing"):
        report.require(sn.Policy({"max_epsilon": 8.0}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a JSON report"),
        ("[" * 100_000, "is not a JSON report"),
        ('{"schema": NaN}', "NaN is not a JSON number"),
        ("[]", "expected an object, got list"),
        ('{"schema": "shieldnet.report/1", "reports": 1e999}', "is too large for a number"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, words) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(sn.errors.DataError, match=words):
        parsed(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(sn.errors.DataError, match="Cannot read .*nowhere.json: No such file"):
        parsed(tmp_path / "nowhere.json")
