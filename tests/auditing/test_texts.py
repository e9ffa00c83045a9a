"""Audits of language models: what is measured of them, and what is refused by name."""

import copy
from pathlib import Path

import pytest
import torch
from language import LENGTH, VOCABULARY, Story, Writer, fitted, story, texts
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core.errors import AnswerError, ConfigError, DataError
from shieldnet.reports.report import BARE

QUICK = {"tier": "quick", "progress": False}
A, B = texts(40, seed=1), texts(40, seed=2)
IGNORED = torch.full_like(A, -100)
RAGGED = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]


@pytest.fixture(scope="module")
def writer() -> nn.Module:
    torch.manual_seed(0)
    return Writer().eval()


@pytest.fixture(scope="module")
def tale() -> Story:
    return story(rows=120, steps=25)


class OtherTokens(nn.Module):
    """Is sure of what never comes, as a model of another tokenizer."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 9.0 * nn.functional.one_hot((tokens + 5) % VOCABULARY, VOCABULARY)


def with_unknown(tokens: Tensor, unknown: int) -> Tensor:
    changed = tokens.clone()
    changed[7, 0] = unknown
    return changed


@pytest.mark.parametrize(
    ("members", "nonmembers", "words"),
    [
        (RAGGED, B, "sequences of one length, got lengths from 2 to 4"),
        ({"tokens": RAGGED}, {"tokens": B}, "sequences of one length"),
        ([torch.tensor(row) for row in RAGGED], B, "sequences of one length"),
        (
            with_unknown(A, 99),
            B,
            "range from 0 to 99: is the vocabulary that large, and does the model take",
        ),
        ((with_unknown(A, -1), A.roll(1, 1)), (B, B.roll(1, 1)), "from -1 to 23"),
        ((A, IGNORED), (B, IGNORED), "got none in 40 of the 40 members"),
    ],
    ids=["ragged", "ragged by name", "ragged tensors", "unknown", "negative", "ignored"],
)
def test_texts_that_cannot_be_read_are_refused(writer, members, nonmembers, words) -> None:
    with pytest.raises(DataError, match=words):
        sn.audit(sn.harden(writer, axis=-1), members=members, nonmembers=nonmembers, **QUICK)


def test_a_text_of_one_token_before_padding_is_refused(writer) -> None:
    short = A.clone()
    short[3, 1:] = 0
    with pytest.raises(DataError, match="A text takes two tokens"):
        sn.audit(sn.harden(writer, axis=-1), members=short, nonmembers=B, padding=0, **QUICK)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (lambda writer: Writer(30), "got 30 classes at 12 positions: it has another vocabulary"),
        (lambda writer: Writer(12), "does not answer about the nonmembers"),
        (lambda writer: OtherTokens(), "worse than a guess"),
        (lambda writer: writer, "the audited model itself"),
        (copy.deepcopy, "answers exactly as the audited model does"),
        (lambda writer: "gpt2", "got str"),
    ],
    ids=["larger", "smaller", "another tokenizer", "itself", "a copy of itself", "a name"],
)
def test_a_base_that_is_none_is_refused(writer, base, words) -> None:
    with pytest.raises(ConfigError, match=words):
        sn.audit(sn.harden(writer, axis=-1), members=A, nonmembers=B, base=base(writer), **QUICK)


def test_what_a_model_returns_beside_its_scores_is_left_out_of_the_users_own_call() -> None:
    class WithCache(Writer):
        def forward(self, tokens):
            return {"logits": super().forward(tokens), "cache": tokens.float()}

    with pytest.raises(AnswerError, match=r"drop=\('cache',\), .*sn\.harden\(model") as refused:
        sn.audit(sn.harden(WithCache(), axis=-1), members=A, nonmembers=B, **QUICK)
    assert "sn.Shield(" not in str(refused.value)  # one without defenses


def test_a_base_of_a_model_of_one_row_is_refused(linear, writer) -> None:
    sets = [(torch.randn(30, 6), torch.zeros(30, dtype=torch.int64)) for _ in range(2)]
    with pytest.raises(ConfigError, match="Leave base out"):
        sn.audit(sn.harden(linear), members=sets[0], nonmembers=sets[1], base=writer, **QUICK)


def test_an_audit_of_texts_is_judged_by_its_own_limits(tale: Story, tmp_path: Path) -> None:
    def train(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        assert data[1][:, :-1].equal(data[0][:, 1:])
        return fitted(tale.base, data[0], 3, seed)

    report = sn.audit(
        sn.harden(tale.model, axis=-1),
        members=tale.members,
        nonmembers=tale.nonmembers,
        base=tale.base,
        train=train,
        shadows=4,
        **QUICK,
    )

    assert "almost nothing" not in report.title
    bare = {finding.name: finding for finding in report.subjects[0].findings}
    assert bare["membership.sequences.ratio to base.auc"].low > 0.6
    assert bare["membership.sequences.LiRA.auc"].threat.shadows == 4
    limits = {"max_sequence_membership_auc": 0.6, "max_verbatim": 0.5}
    verdict = report.verdict(sn.Policy(limits), BARE)
    assert {one.limit for one in verdict.broken} == {"max_sequence_membership_auc"}
    report.save(tmp_path / "audit.xml", sn.Policy(limits))
    assert "membership.sequences.auc" in (tmp_path / "audit.xml").read_text()
    report.save(tmp_path / "audit.html")
    assert "sequence membership AUC" in (tmp_path / "audit.html").read_text()


def test_the_model_that_finetune_started_from_is_the_base(tale: Story) -> None:
    labels = torch.nn.functional.pad(tale.members[:, 1:], (0, 1), value=-100)
    start = copy.deepcopy(tale.base).train()
    tuned = sn.finetune(start, (tale.members, labels), epochs=1, axis=-1, seed=0, progress=False)

    report = sn.audit(
        sn.harden(tuned.model, axis=-1),
        members=tale.members,
        nonmembers=tale.nonmembers,
        finetuned=tuned,
        **QUICK,
    )

    assert tuned.base is start
    assert start.training
    assert any("ratio to base" in one.name for one in report.subjects[0].findings)


class Named(nn.Module):
    """Takes a text and its mask by name, as Hugging Face's models do."""

    def __init__(self, asked: nn.Module) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.asked(input_ids * attention_mask)


def test_masked_models_are_held_to_their_labels_by_named_inputs(tale: Story, writer) -> None:
    def masked(tokens: Tensor, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        hidden[:, -1] = True
        shown = tokens.masked_fill(hidden, 0)
        inputs = {"input_ids": shown, "attention_mask": torch.ones_like(shown)}
        return inputs, tokens.where(hidden, -100)

    report = sn.audit(
        sn.harden(Named(tale.model), axis=-1),
        members=masked(tale.members, 1),
        nonmembers=masked(tale.nonmembers, 2),
        base=Named(writer),
        shadows=0,
        **QUICK,
    )

    bare = report.subjects[0]
    found = {finding.name: finding for finding in bare.findings}
    assert found["membership.sequences.EZ.auc"].samples == 240
    assert any("only next tokens complete a text" in line for line in bare.untested)


def test_a_server_of_next_tokens_is_asked_about_every_beginning(tale) -> None:
    shields = {
        positions: sn.harden(tale.model, "open", axis=-1, release_positions=positions)
        for positions in ("all", "last")
    }
    found = {}
    for positions, shield in shields.items():
        report = sn.audit(
            shield, members=tale.members, nonmembers=tale.nonmembers, base=tale.base, **QUICK
        )
        served = report.subjects[-1]
        found[positions] = {one.name: one.value for one in served.findings}
        one_place = sn.harden(nn.Linear(1, VOCABULARY), "open").cost(VOCABULARY).bits
        places = LENGTH if positions == "all" else 1
        assert served.certificate.bits == pytest.approx(places * one_place)
    assert found["last"] == found["all"]
    assert found["last"]["membership.sequences.ratio to base.auc"] > 0.6
