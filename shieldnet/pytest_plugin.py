"""A pytest fixture for your own tests: ``assert shieldnet_report.passes("policy.toml")``."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shieldnet.reports.report import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option ``--shieldnet-report`` and the setting ``shieldnet_report``."""
    words = "report.json of an audit, for the fixture shieldnet_report"
    parser.getgroup("shieldnet").addoption("--shieldnet-report", metavar="FILE", help=words)
    parser.addini("shieldnet_report", words, default="")


@pytest.fixture(scope="session")
def shieldnet_report(pytestconfig: pytest.Config) -> "Report":
    """Returns the report of an audit, from ``--shieldnet-report`` or the setting of that name.

    A relative path in the setting is relative to the configuration file.
    """
    from shieldnet.reports.report import Report

    given = pytestconfig.getoption("--shieldnet-report")
    setting = pytestconfig.getini("shieldnet_report")
    if not (given or setting):
        raise pytest.UsageError(
            "Expected --shieldnet-report=report.json, or shieldnet_report = report.json in the "
            "pytest settings; neither is set. Make it with: shieldnet audit ... -o report.json"
        )
    return Report.load(given or pytestconfig.rootpath / setting)
