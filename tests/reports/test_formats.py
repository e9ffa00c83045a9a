import sys

import pytest

import shieldnet as sn
from shieldnet.reports.formats import check_target


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
    with pytest.raises(sn.errors.MissingDependency, match=rf"pip install 'shieldnet\[{extra}\]'"):
        check_target(tmp_path / name)
