import sys

import pytest

import shieldnet as sn
from shieldnet.reports import formats
from shieldnet.reports.formats import Format, check_target


def test_a_target_is_checked_before_any_attack_runs(tmp_path) -> None:
    assert check_target(tmp_path / "report.html") == tmp_path / "report.html"
    with pytest.raises(sn.errors.ConfigError, match=r"ends in \.json, \.html, .*; got report.pdf"):
        check_target(tmp_path / "report.pdf")
    with pytest.raises(sn.errors.ConfigError, match="there is no folder"):
        check_target(tmp_path / "nowhere" / "report.html")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("report.html", "vl_convert", "html"), ("README.md", "huggingface_hub", "card")],
)
def test_a_missing_library_is_named_with_its_install(
    tmp_path, monkeypatch, name, module, extra
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(sn.errors.MissingDependency, match=rf"-e '\.\[{extra}\]'"):
        check_target(tmp_path / name)


def test_a_form_of_ones_own_takes_a_function_and_a_line_of_the_table(
    report, tmp_path, monkeypatch
) -> None:
    def as_toy(document) -> str:
        return "\n".join(one["name"] for one in document["reports"][0]["subjects"])

    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, ".toy": Format(as_toy)})
    report.save(tmp_path / "report.toy")
    assert (tmp_path / "report.toy").read_text().split() == [one.name for one in report.subjects]
    needs = Format(as_toy, needs=("no_such_module", "toys"))
    monkeypatch.setattr(formats, "FORMATS", {".toy": needs})
    with pytest.raises(sn.errors.MissingDependency, match=r"-e '\.\[toys\]'"):
        report.save(tmp_path / "report.toy")
