"""The page in a real browser: it moves, asks for nothing, and can be used by everybody."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from by_hand import SAVED, made, subject
from playwright.sync_api import Browser, Page, sync_playwright

import shieldnet as sn
from shieldnet.reports.report import save

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
EVERY = "every shield"
SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="it takes Chromium: apt-get install chromium, or CHROMIUM=path"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as player:
        # A container's root may not make a sandbox of its own.
        found = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """A page that was opened, with whatever it said and asked for."""

    def __init__(self, browser: Browser, path: Path, **settings) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page: Page = browser.new_context(**settings).new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        figures = self.page.locator("figure[data-chart]").count()
        self.page.wait_for_function(
            f"document.querySelectorAll('figure[data-chart] svg').length === {figures}"
        )


@pytest.fixture
def page_file(pictured, tmp_path) -> Path:
    pictured.save(tmp_path / "report.html")
    return tmp_path / "report.html"


def test_it_says_nothing_to_the_console_and_asks_for_nothing(browser, page_file) -> None:
    visit = Visit(browser, page_file)
    for name in ("bare", "open", EVERY):
        visit.page.get_by_role("radio", name=name).check()
    visit.page.wait_for_timeout(200)
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith("data:")] == [page_file.as_uri()]


def test_its_policy_forbids_every_request_and_every_other_script(browser, page_file) -> None:
    """The page cannot leak what it shows, even if a title of it could be read as a script."""
    visit = Visit(browser, page_file)
    blocked = visit.page.evaluate(
        """async () => {
            const found = [];
            addEventListener("securitypolicyviolation", (e) => found.push(e.effectiveDirective));
            await fetch("https://example.com/").catch(() => found.push("fetch"));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            await new Promise((done) => setTimeout(done, 50));
            return [window.ran, ...found];
        }"""
    )
    assert blocked[0] is None
    assert {"connect-src", "fetch", "script-src-elem"} <= set(blocked[1:])


def test_the_explorer_moves_panels_pictures_and_charts(browser, page_file) -> None:
    page = Visit(browser, page_file).page

    def shown() -> set[str]:
        every = page.locator("[data-subject]").all()
        return {one.get_attribute("data-subject") for one in every if one.is_visible()}

    def drawn() -> str:
        page.wait_for_timeout(150)
        return page.locator("figure[data-chart=bounds] svg").inner_html()

    assert shown() == {"strict"}, "the one to be released is shown first"
    pictures = [drawn()]
    for name in ("bare", "open"):
        page.get_by_role("radio", name=name).check()
        assert shown() == {name}
        pictures.append(drawn())
    assert len(set(pictures)) == 3
    page.get_by_role("radio", name=EVERY).check()
    assert shown() == {"bare", "open", "strict"}
    assert page.locator("article.panel:visible").count() == 3
    assert page.locator("table.images").first.locator("tr:visible").count() == 4


def test_the_explorer_goes_by_the_keyboard(browser, page_file) -> None:
    page = Visit(browser, page_file).page
    page.get_by_role("radio", name="strict").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("radio", name="open").is_checked()
    assert page.locator("article.panel:visible").get_attribute("data-subject") == "open"
    assert page.get_by_role("status").text_content() == "Showing open."


def test_twenty_shields_of_any_name_can_be_chosen_one_by_one(browser, tmp_path) -> None:
    names = ["bare", '"quoted"', "a'b", EVERY, "</script>", *(f"number {n}" for n in range(15))]
    made(*(subject(name, 0.02, 5.0) for name in names)).save(tmp_path / "report.html")
    visit = Visit(browser, tmp_path / "report.html")
    buttons = visit.page.get_by_role("radio")
    assert buttons.count() == len(names) + 1
    for place, name in enumerate(names):
        buttons.nth(place).check()
        shown = visit.page.locator("article.panel:visible")
        assert [one.get_attribute("data-subject") for one in shown.all()] == [name]
    assert visit.said == []


def test_a_chart_tells_its_numbers_under_the_pointer(browser, page_file) -> None:
    page = Visit(browser, page_file).page
    page.locator("figure[data-chart=bounds] .layer_1_marks path").nth(2).hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    for words in ("strict", "membership AUC", "0.55", "rows", "400", "by hand"):
        assert words in tip.text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    browser, page_file, size, scheme
) -> None:
    visit = Visit(browser, page_file, viewport=SIZES[size], color_scheme=scheme, bypass_csp=True)
    visit.page.get_by_role("radio", name=EVERY).check()
    visit.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    found = Axe().run(visit.page).response["violations"]
    assert [(one["impact"], one["id"]) for one in found] == []
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert width == SIZES[size]["width"]


def test_without_scripts_everything_is_there(browser, page_file) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(page_file.as_uri())
    assert page.locator("article.panel:visible").count() == 3
    assert not page.locator("fieldset").first.is_visible()


def test_on_paper_everything_is_open(browser, page_file) -> None:
    page = Visit(browser, page_file).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.pdf().startswith(b"%PDF")


def test_what_a_user_named_cannot_break_out(browser, tmp_path) -> None:
    nasty = '</script><script>window.ran = 1</script><img src=x onerror="window.ran = 1">'
    path = tmp_path / "report.html"
    made(subject("bare", 0.6, 99.0), subject(nasty, 0.1, 3.0), title=nasty).save(path)
    visit = Visit(browser, path)
    assert visit.page.evaluate("window.ran") is None
    assert visit.said == []
    assert visit.page.locator("h2").first.text_content() == nasty


def test_a_measured_bound_above_its_proof_is_said_in_words(browser, tmp_path) -> None:
    wrong = made(subject("strict", 0.0, 3.3))
    found = replace(wrong.findings[2], low=0.5, value=0.6, high=0.7)
    wrong = replace(wrong, subjects=(replace(wrong.subjects[0], findings=(found,)),))
    wrong.save(tmp_path / "report.html", sn.Policy({"max_bits_per_answer": 9}))
    words = Visit(browser, tmp_path / "report.html").page.locator(".verdict strong").text_content()
    assert "a measured value is above its own proven upper bound" in words


def test_tables_and_reports_of_the_first_version_are_drawn(browser, tmp_path) -> None:
    path = tmp_path / "report.html"
    save([sn.Report.load(SAVED), made()], path)
    visit = Visit(browser, path)
    assert visit.said == []
    assert visit.page.locator("section[data-report]").count() == 2
    assert visit.page.locator("figure[data-chart=columns] svg").count() == 1
    visit.page.get_by_role("radio", name="bare").first.check()
    assert visit.page.get_by_role("radio", name="balanced").is_checked(), "reports are apart"


def test_every_number_stands_with_interval_sample_baseline_and_source(page_file, pictured) -> None:
    text = re.sub(r"\s+", " ", page_file.read_text())
    table = text[text.index('<details data-subject="strict">') :]
    for finding in pictured.findings:
        row = table[table.index(f'<th scope="row">{finding.name}</th>') :].split("</tr>")[0]
        for part in (finding.value, finding.low, finding.high, finding.baseline):
            assert f"{part:.3f}" in row
        assert f"<td>{finding.samples}</td>" in row
        assert finding.source in row
