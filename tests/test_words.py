"""What users read is in the field's words: none of the old ones comes back."""

import ast
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
SOURCES = sorted((ROOT / "shieldnet").rglob("*.py"))
QUAINT = re.compile(
    r"\b(says whether|stands? in|(is|are) told|nobody|whoever|by heart|for ever)\b|(?<![\w.])\.\d",
    re.IGNORECASE,
)
COMMANDS = [
    *("demo", "split", "audit", "report", "compare", "finetune", "harden", "verify", "policy"),
    *("serve", "keys"),
]


def old_words(text: str) -> list[str]:
    return [match[0] for match in OLD.finditer(text)]


def docstrings(source: Path) -> list[str]:
    """Lists docstrings without the names of arguments, which may keep theirs."""
    tree = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    nodes = [node for node in tree if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return [re.sub(r"``.*?``|\b\w+:", "", ast.get_docstring(node) or "") for node in nodes]


@pytest.mark.parametrize("page", [*PAGES, *TEMPLATES], ids=lambda page: page.name)
def test_pages_speak_standard_english(page) -> None:
    assert not old_words(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_texts_speak_standard_english_in_whole_sentences(command, tmp_path) -> None:
    text = shieldnet(tmp_path, command, "--help").stdout
    assert "Usage" in text
    assert not old_words(text)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_docstrings_speak_standard_english(source) -> None:
    for text in docstrings(source):
        assert not [*old_words(text), *QUAINT.findall(text)]


def test_an_old_word_would_be_found() -> None:
    assert old_words("A stranger sees 95 % of the pictures.") == ["stranger", "5 %", "pictures"]
    assert [match[0] for match in QUAINT.finditer("Says whether it is .63.")] == [
        "Says whether",
        ".6",
    ]
