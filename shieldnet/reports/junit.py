"""Reports as JUnit XML, which pipelines show beside their own tests."""

import re
from xml.etree import ElementTree

from shieldnet.reports.judged import Document, judged_subjects, unique_names, writable
from shieldnet.reports.untested import labeled


def as_junit(document: Document) -> str:
    """Writes a test suite for each shield, with a test case for each judgment.

    A limit that fails is a failure, an inconclusive one an error: neither lets a build pass.
    What was not tested is skipped, with the reason. Names hold no measured number: a test is the
    same from run to run.
    """
    root = ElementTree.Element("testsuites", name="shieldnet")
    several = len(document["reports"]) > 1
    for report in document["reports"]:
        for subject in judged_subjects(report):
            path = f"{report['title']}.{subject['name']}" if several else subject["name"]
            root.append(_suite(report, subject, f"shieldnet.{path}"))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(report: Document, subject: Document, path: str) -> ElementTree.Element:
    judgments, untested = subject["verdict"]["judgments"], subject["untested"]
    outcomes = [judgment["outcome"] for judgment in judgments]
    suite = ElementTree.Element(
        "testsuite",
        name=writable(f"{report['title']}: {subject['name']}"),
        tests=str(len(judgments) + len(untested)),
        failures=str(outcomes.count("fail")),
        errors=str(outcomes.count("inconclusive")),
        skipped=str(len(untested)),
        time=f"{sum(subject['durations_s'].values()):.2f}",
    )
    names = unique_names(f"{judgment['limit']}: {judgment['finding']}" for judgment in judgments)
    for judgment, name in zip(judgments, names, strict=True):
        case = _case(suite, path, name)
        if judgment["outcome"] != "pass":
            tag = "failure" if judgment["outcome"] == "fail" else "error"
            message = writable(judgment["words"])
            ElementTree.SubElement(
                case, tag, type=judgment["limit"], message=message
            ).text = message
    names = unique_names(_name_of(line) for line in untested)
    for line, name in zip(untested, names, strict=True):
        case = _case(suite, path, name)
        ElementTree.SubElement(case, "skipped", message=writable(line))
    return suite


def _case(suite: ElementTree.Element, path: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=writable(path), name=name)


def _name_of(line: str) -> str:
    """Names what was not tested, the same from run to run."""
    if line.endswith("and were dropped"):
        return "note: records in two sets"
    kind, about = (text.partition(": ")[0] for text in (labeled(line), line))
    return _without_numbers(f"{kind}: {about}")


def _without_numbers(name: str) -> str:
    """Keeps a name the same from run to run: counts in it become N, a group's value stays."""
    return re.sub(r"(?<![\w.-])(?<!= )\d[\d,]*(?![\w.-])", "N", name)
