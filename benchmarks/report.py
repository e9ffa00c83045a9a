"""How long a large report takes to open, and how large it is; and the picture in the docs.

Two MNIST digits side by side make 100 classes. 50,000 rows are audited behind three shields, with
pictures, and the page is opened in headless Chromium, in a new context each time: from the start of
the navigation until every chart is drawn.

    python benchmarks/report.py --data ../shared/data/mnist.npz     # about ten minutes
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from playwright.sync_api import Browser, sync_playwright
from results import write_section
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.demo import run as run_demo

ROWS = {"members": 20_000, "nonmembers": 20_000, "auxiliary": 10_000}
SHIELDS = ("open", "balanced", "strict")
OPENINGS = 7
DOCS = Path(__file__).parent.parent / "docs"

DRAWN = """() => new Promise((done) => {
  const figures = document.querySelectorAll("figure[data-chart]").length;
  const look = () => document.querySelectorAll("figure[data-chart] svg").length === figures
    ? done(performance.now()) : requestAnimationFrame(look);
  look();
})"""


def pairs(path: Path, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Shapes: -> (rows, 1, 14, 28) from 0 to 1, and (rows,) from 0 to 99."""
    with np.load(path) as file:
        pictures = torch.from_numpy(file["Xtr"]).float().reshape(-1, 1, 28, 28) / 255
        labels = torch.from_numpy(file["ytr"]).long()
    small = nn.functional.avg_pool2d(pictures, 2)
    left, right = torch.randint(
        len(small), (2, rows), generator=torch.Generator().manual_seed(seed)
    )
    return torch.cat([small[left], small[right]], -1), 10 * labels[left] + labels[right]


def network() -> nn.Module:
    """Makes the audited model."""
    return nn.Sequential(nn.Flatten(), nn.Linear(392, 256), nn.ReLU(), nn.Linear(256, 100))


def audited(path: Path) -> sn.Report:
    """Audits a model of 100 classes on 50,000 rows."""
    inputs, labels = pairs(path, sum(ROWS.values()))
    parts = [
        (inputs[rows], labels[rows])
        for rows in torch.arange(len(inputs)).split(list(ROWS.values()))
    ]
    sets = dict(zip(ROWS, parts, strict=True))
    recipe = sn.Recipe(network, epochs=10)
    model = recipe(sets["members"], 0)
    groups = {
        "left digit": tuple((sets[name][1] // 10).numpy() for name in ("members", "nonmembers"))
    }
    return sn.audit(
        {name: sn.harden(model, name) for name in SHIELDS},
        **sets,
        groups=groups,
        train=recipe,
        tier="quick",
        with_examples=8,
        title="Two digits, 100 classes",
        progress=True,
    )


def opened_s(browser: Browser, page: Path, **settings: object) -> list[float]:
    """Opens a page in new contexts; returns the seconds until all charts are drawn."""
    taken = []
    for _ in range(OPENINGS):
        context = browser.new_context(**settings)
        tab = context.new_page()
        tab.goto(page.as_uri(), wait_until="commit")
        taken.append(tab.evaluate(DRAWN) / 1000)
        context.close()
    return taken


def pictured(browser: Browser, folder: Path) -> None:
    """Makes the picture of the documentation from the demo's report."""
    run_demo(folder)
    tab = browser.new_context(viewport={"width": 1180, "height": 2050}).new_page()
    tab.goto((folder / "report.html").as_uri())
    tab.evaluate(DRAWN)
    tab.get_by_role("radio", name="every shield").first.check()
    tab.wait_for_timeout(500)
    tab.screenshot(path=DOCS / "report.png")


def main() -> None:
    """Audits, opens, measures, and writes the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as player:
        folder = Path(name)
        begun = time.monotonic()
        report = audited(given.data)
        audit_s = time.monotonic() - begun
        report.save(folder / "report.json")
        report.save(folder / "warm.html")
        begun = time.monotonic()
        report.save(folder / "report.html")
        save_s = time.monotonic() - begun
        begun = time.monotonic()
        sn.Report.load(folder / "report.json")
        load_s = time.monotonic() - begun
        browser = player.chromium.launch(
            executable_path=given.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        desktop = opened_s(browser, folder / "report.html", viewport={"width": 1280, "height": 900})
        phone = opened_s(browser, folder / "report.html", viewport={"width": 390, "height": 844})
        sizes = {
            suffix: (folder / f"report.{suffix}").stat().st_size / 1e6
            for suffix in ("html", "json")
        }
        pictured(browser, folder)
        browser.close()
    findings = sum(len(subject.findings) for subject in report.subjects)
    document = json.dumps([subject.name for subject in report.subjects])
    rows = [
        "| 100 classes, 50,000 rows, 3 shields and the bare model | measured | limit | share |",
        "|---|---|---|---|",
        *(
            f"| opens on a {name}: median of {OPENINGS} (slowest) | "
            f"{statistics.median(taken):.2f} s ({max(taken):.2f}) | 2 s | "
            f"{statistics.median(taken) / 2:.2f} |"
            for name, taken in (("desktop", desktop), ("phone's width", phone))
        ),
        f"| the page | {sizes['html']:.2f} MB | 5 MB | {sizes['html'] / 5:.2f} |",
        f"| report.json | {sizes['json']:.2f} MB | | |",
        f"| writing the page | {save_s:.2f} s | | |",
        f"| reading report.json back, checked | {load_s:.2f} s | | |",
        f"| the audit, training of 8 shadows included | {audit_s:.0f} s | | |",
    ]
    text = "\n".join([f"{findings} findings of {document}.", "", *rows])
    write_section("report", "python benchmarks/report.py --data MNIST", text)


if __name__ == "__main__":
    main()
