"""What users read is in the field's words: none of the old ones comes back."""

import re
from pathlib import Path

import pytest
from shell import shieldnet

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
TEMPLATES = sorted((ROOT / "shieldnet" / "reports" / "html").rglob("*.jinja"))
OLD = re.compile(
    r"\b(mend(s|ed)?|strangers?|pictures?|beyond chance|coins?|straight through|yes or no"
    r"|defect of (ours|shieldnet)|beats it|read best|who trained it)\b|\d %",
    re.IGNORECASE,
)
COMMANDS = ["demo", "split", "audit", "report", "compare", "finetune", "harden", "verify", "policy"]


def old_words(text: str) -> list[str]:
    return [match[0] for match in OLD.finditer(text)]


@pytest.mark.parametrize("page", [*PAGES, *TEMPLATES], ids=lambda page: page.name)
def test_pages_speak_standard_english(page) -> None:
    assert not old_words(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_texts_speak_standard_english_in_whole_sentences(command, tmp_path) -> None:
    text = shieldnet(tmp_path, command, "--help").stdout
    assert "Usage" in text
    assert not old_words(text)


def test_an_old_word_would_be_found() -> None:
    assert old_words("A stranger sees 95 % of the pictures.") == ["stranger", "5 %", "pictures"]
