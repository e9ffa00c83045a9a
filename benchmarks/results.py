"""Writes one benchmark's section of RESULTS.md and leaves the others alone."""

import platform
import re
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"


def write_section(name: str, command: str, text: str, *, is_shown: bool = True) -> None:
    """Replaces the section ``name`` of RESULTS.md, or appends it. is_shown: whether to print it."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{start}\n`{command}` ({machine})\n\n{text.strip()}\n{end}"
    page = RESULTS.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(page):
        page = pattern.sub(lambda _: section, page)
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    RESULTS.write_text(page, encoding="utf-8")
    if is_shown:
        print(section)
