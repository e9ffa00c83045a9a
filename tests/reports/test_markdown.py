import pytest
from by_hand import made, subject
from huggingface_hub import ModelCard

import shieldnet as sn

CARD = "---\nlicense: mit\ntags:\n- digits\n---\n# Digits\n\nA model.\n"


def test_it_says_the_verdict_the_numbers_and_what_was_not_tested(report, tmp_path) -> None:
    report.save(tmp_path / "audit.md", "default")
    text = (tmp_path / "audit.md").read_text()
    assert text.startswith("## Digits: ✅ passes\n")
    assert (
        "| balanced | ✅ passes | 5.33 | 0.940 (0.920 to 0.960) | 0.030 (0.010 to 0.050) |" in text
    )
    assert "cannot be seen from answers: timing and other side channels." in text
    assert "| bare | not judged | infinite |" in text
    assert "evidence, never a claim of compliance." in text


def test_words_are_not_read_as_markdown_or_html(tmp_path) -> None:
    nasty = made(subject("a|b\n<script>", 0.0, 3.0), title="**bold** [x](y)")
    nasty.save(tmp_path / "audit.md", "default")
    text = (tmp_path / "audit.md").read_text()
    assert text.startswith(r"## \*\*bold\*\* \[x\](y): ✅ passes")
    assert r"| a\|b &lt;script&gt; |" in text


class TestModelCard:
    def test_a_section_is_added_and_the_rest_is_kept(self, report, tmp_path) -> None:
        path = tmp_path / "README.md"
        path.write_text(CARD)
        report.save(path, "default")
        card = ModelCard.load(path)
        assert card.data.license == "mit"
        assert card.data.tags == ["digits", "shieldnet"]
        assert card.text.startswith("# Digits\n\nA model.\n\n<!-- shieldnet: begin -->")
        assert "### Digits: ✅ passes" in card.text

    def test_it_is_written_again_in_its_place(self, report, tmp_path) -> None:
        path = tmp_path / "README.md"
        path.write_text(CARD)
        report.save(path, "default")
        path.write_text(path.read_text() + "\n## License\n\nMine.\n")
        made(subject("strict", 0.9, 3.3), title="Again").save(path, "default")
        card = ModelCard.load(path)
        assert card.text.count("shieldnet: begin") == 1
        assert "### Again: ❌ fails" in card.text
        assert "### Digits" not in card.text
        assert card.text.endswith("## License\n\nMine.\n")
        assert card.data.tags == ["digits", "shieldnet"]

    def test_there_need_be_no_card_yet(self, report, tmp_path) -> None:
        report.save(tmp_path / "README.md")
        assert ModelCard.load(tmp_path / "README.md").data.tags == ["shieldnet"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("---\nlicense: [mit\n---\n# x", "metadata cannot be read"),
            ("# x\n<!-- shieldnet: begin -->\n", "without <!-- shieldnet: end -->"),
        ],
    )
    def test_a_card_that_cannot_be_read_is_left_alone(self, report, tmp_path, text, words) -> None:
        path = tmp_path / "README.md"
        path.write_text(text)
        with pytest.raises(sn.errors.DataError, match=words):
            report.save(path, "default")
        assert path.read_text() == text
