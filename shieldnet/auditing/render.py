"""One self-contained page that people look at: verdict, pictures, numbers, limits."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.finding import decimals, goes_by
from shieldnet.price import rounded_up

_TEMPLATE = "report.html.jinja"
_INK = "#010203"  # stands for the page's own text color until the picture is in the page
_COLORS = {"bare": "#d9541e", "open": "#a87908", "balanced": "#0f8f85", "strict": "#3b76ee"}
_SPARE = ("#0f8f85", "#8b5cf6", "#d6478b", "#5f9416", "#0e86c4")
_MOST_COLUMNS = 8


def page(document: dict[str, Any]) -> str:
    """Renders a saved report document as one HTML file: no script, no request, no font to load.

    Source: the document of ``Report.save``, schema shieldnet.report/1.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "interval": _interval, "decimals": decimals}
    sections = [_section(report) for report in document["reports"]]
    return environment.get_template(_TEMPLATE).render(sections=sections, schema=document["schema"])


def _section(report: dict[str, Any]) -> dict[str, Any]:
    subjects = report["subjects"]
    for place, subject in enumerate(subjects):
        subject["color"] = _COLORS.get(subject["name"], _SPARE[place % len(_SPARE)])
        subject["by_name"] = {finding["name"]: finding for finding in subject["findings"]}
        leaks = [
            finding
            for finding in subject["findings"]
            if any(goes_by(finding["name"], name) for name in ("inversion", "averaging."))
        ]
        if leaks:  # the worst of one answer and of many averaged
            subject["by_name"]["leakage"] = max(leaks, key=lambda finding: finding["value"])
    is_table = bool(report["columns"])
    return {
        **report,
        "is_table": is_table,
        "headline": _headline(subjects),
        "agreement": subjects[0]["by_name"].get("attribution.rank_correlation"),
        "masking": [
            (subject, subject["by_name"]["masking"], subject["by_name"]["masking.captum"])
            for subject in subjects
            if "masking" in subject["by_name"]
        ],
        "pictures": [] if is_table else _pictures(report),
        "class_pictures": [] if is_table else _class_pictures(subjects),
        "leak_maps": [] if is_table else _leak_maps(subjects),
        "tradeoff": _tradeoff(subjects),
        "columns_chart": _columns_chart(subjects) if is_table else "",
    }


def _headline(subjects: Sequence[dict[str, Any]]) -> str:
    """Says in two sentences what the bare model gives away and what the shields leave."""
    leaks = [
        (subject["name"], subject["by_name"]["leakage"]["value"])
        for subject in subjects
        if "leakage" in subject["by_name"]
    ]
    if len(leaks) < 2:
        return ""
    (bare, most), *rest = leaks
    left = ", ".join(f"{name} {max(0.0, value):.1%}" for name, value in rest)
    return (
        f"Of what the label leaves open about an input, the best attack reads {most:.0%} from "
        f"the {bare} model's answers. Behind the shields it still reads: {left}."
    )


def _pictures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Lists rows of pictures: the inputs, then what the adversary reads from each shield."""
    if report["inputs"] is None:
        return []
    inputs = np.asarray(report["inputs"], dtype=float)
    low, high = float(inputs.min()), float(inputs.max())
    rows = [("what was sent", "inherit", inputs)]
    rows += [
        (f"read from {subject['name']}", subject["color"], np.asarray(subject["reconstructions"]))
        for subject in report["subjects"]
        if subject["reconstructions"] is not None
    ]
    return [
        {"title": title, "color": color, "images": [_png(image, low, high) for image in images]}
        for title, color, images in rows
    ]


def _class_pictures(subjects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lists what the best search drew of each class, a row of pictures for each shield."""
    prefix = "class image "
    rows = []
    for subject in subjects:
        images = [
            np.asarray(values, dtype=float)
            for name, values in subject["features"].items()
            if name.startswith(prefix)
        ]
        if images:
            low, high = float(np.min(images)), float(np.max(images))
            way = subject["by_name"]["class_inversion"]["source"].split(" ")[0].replace("_", " ")
            rows.append(
                {
                    "title": f"{subject['name']}, by {way}",
                    "color": subject["color"],
                    "images": [_png(image, low, high) for image in images],
                }
            )
    return rows


def _leak_maps(subjects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Draws the share of every pixel that leaks through each shield, plain variance beside it."""
    if "null map" not in subjects[0]["features"]:
        return []
    variance = np.asarray(subjects[0]["features"]["null map"])
    null = {
        "title": "plain variance",
        "color": "inherit",
        "image": _png(variance, 0.0, float(variance.max()), "inferno"),
    }
    shares = [
        {
            "title": subject["name"],
            "color": subject["color"],
            "image": _png(np.asarray(subject["features"]["leak map"]), 0.0, 1.0, "inferno"),
        }
        for subject in subjects
        if "leak map" in subject["features"]
    ]
    return [*shares, null]


def _png(image: NDArray[np.float64], low: float, high: float, colors: str = "gray") -> str:
    """Encodes a picture, (height, width) or (channels, height, width), as a data URI."""
    from matplotlib.image import imsave

    if image.ndim == 3 and image.shape[0] in (3, 4):
        image = np.clip((np.moveaxis(image, 0, -1) - low) / max(high - low, 1e-12), 0, 1)
    elif image.ndim == 3:
        image = image.mean(0)
    buffer = io.BytesIO()
    imsave(buffer, image, cmap=colors, vmin=low, vmax=max(high, low + 1e-12), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _tradeoff(subjects: Sequence[dict[str, Any]]) -> str:
    """Draws accuracy against inversion leakage, both with their intervals."""
    points = [
        (subject, subject["by_name"]["leakage"], subject["by_name"]["accuracy"])
        for subject in subjects
        if "leakage" in subject["by_name"]
    ]
    if not points:
        return ""
    figure, axes = _figure(6.4, 3.0)
    for subject, leak, right in points:
        axes.errorbar(
            leak["value"],
            right["value"],
            xerr=_reach(leak),
            yerr=_reach(right),
            fmt="o",
            markersize=8,
            capsize=3,
            color=subject["color"],
            label=_plain(subject["name"]),
        )
    axes.axvline(0, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("leakage of the input (0 = no more than the label)")
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, loc="center", labelcolor="linecolor")
    return _svg(figure, "Accuracy against leakage for each shield")


def _columns_chart(subjects: Sequence[dict[str, Any]]) -> str:
    """Draws the columns that leak most through the bare model, and what each shield leaves."""
    prefix = "inversion.column."
    ranked = sorted(
        (finding for finding in subjects[0]["findings"] if finding["name"].startswith(prefix)),
        key=lambda finding: -finding["value"],
    )[:_MOST_COLUMNS]
    if not ranked:
        return ""
    figure, axes = _figure(6.4, 0.8 + 0.5 * len(ranked))
    step = 0.8 / len(subjects)
    for place, subject in enumerate(subjects):
        found = [subject["by_name"].get(finding["name"]) for finding in ranked]
        for row, finding in enumerate(found):
            if finding is None:
                continue
            height = -row - place * step + 0.3
            axes.errorbar(
                finding["value"],
                height,
                xerr=_reach(finding),
                fmt="o",
                markersize=5,
                capsize=2,
                color=subject["color"],
                label=_plain(subject["name"]) if row == 0 else None,
            )
    axes.set_yticks(
        [-row for row in range(len(ranked))],
        [_plain(finding["name"].removeprefix(prefix)) for finding in ranked],
    )
    axes.axvline(0, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("leakage of the column (0 = no more than the label)")
    axes.legend(frameon=False, fontsize=9, loc="lower right", labelcolor="linecolor")
    return _svg(figure, "The columns that leak most, for each shield")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    for side in axes.spines.values():
        side.set_color(_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """Writes a figure as inline SVG whose ink is the page's own, in light and in dark."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shieldnet"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _plain(words: str) -> str:
    """Keeps matplotlib from reading a dollar as mathematics."""
    return words.replace("$", r"\$")


def _reach(finding: dict[str, Any]) -> list[list[float]]:
    return [
        [max(0.0, finding["value"] - finding["low"])],
        [max(0.0, finding["high"] - finding["value"])],
    ]


def _number(value: float | str) -> str:
    return "∞" if isinstance(value, str) else rounded_up(value)


def _interval(finding: dict[str, Any]) -> str:
    return f"{decimals(finding['low'])} to {decimals(finding['high'])}"
