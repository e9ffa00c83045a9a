"""Prompts, hidden sizes and logits: read from a bare model, and not from what says nothing."""

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.attacks.positions.model_secrets import HiddenSize, LogitBias
from shieldnet.attacks.positions.prompts import PromptInversion
from shieldnet.data.examples import Examples, as_examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome
from shieldnet.shield.settings import Extent

WORDS, LENGTH, HIDDEN = 24, 6, 8


class Reader(nn.Module):
    """A small causal model: the mean of what it read, and the last word."""

    def __init__(self, words: int = WORDS, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 32)
        self.read = nn.GRU(32, hidden, batch_first=True)
        self.out = nn.Linear(hidden, words)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.out(self.read(self.words(tokens.long()))[0])
        return scores


@pytest.fixture(scope="module")
def game() -> Game:
    torch.manual_seed(0)
    texts = torch.randint(1, WORDS, (700, LENGTH))
    model = Reader().eval()
    sets = dict(
        zip(("members", "nonmembers", "auxiliary"), texts.split([50, 50, 600]), strict=True)
    )
    examples = {name: Examples(name, rows) for name, rows in sets.items()}
    return Game(sn.Shield(model, axis=-1), **examples, extent=Extent(WORDS, (LENGTH,)))


def behind(game: Game, *defenses: sn.Defense, **settings: str) -> Game:
    return game.behind(sn.Shield(game.shield.model, *defenses, axis=-1, **settings))


def found(outcome: Outcome) -> dict[str, Finding]:
    return {finding.name: finding for finding in outcome.findings}


def test_short_prompts_are_read_from_bare_scores_and_not_from_labels(game: Game) -> None:
    attack = PromptInversion(tokens=2, texts=24, candidates=12)

    bare = found(attack(game))["prompts.exact"]
    labels = found(attack(behind(game, release="labels")))["prompts.exact"]

    assert bare.low > 0.5
    assert labels.high < bare.low


def test_scores_at_every_position_read_whole_prompts(game: Game) -> None:
    last = game.behind(sn.Shield(game.shield.model, axis=-1, release_positions="last"))
    attack = PromptInversion(tokens=LENGTH, texts=24, candidates=8, rounds=1)

    everywhere = found(attack(game))["prompts.exact"]
    alone = found(attack(last))["prompts.exact"]

    assert everywhere.value > 0.9
    assert everywhere.low > alone.value


def test_an_echo_is_read_though_its_winners_say_it_all(game: Game) -> None:
    class Echo(Reader):
        def forward(self, tokens: Tensor) -> Tensor:
            return 5.0 * nn.functional.one_hot((tokens * 5 + 3) % WORDS, WORDS)

    echo = game.behind(sn.Shield(Echo().eval(), axis=-1, release="labels"))

    assert found(PromptInversion(tokens=4, texts=24)(echo))["prompts.exact"].value == 1.0


def test_the_search_reads_more_than_the_regression(game: Game) -> None:
    searched = found(PromptInversion(tokens=3, texts=30)(game))["prompts.tokens"]
    alone = found(PromptInversion(tokens=3, texts=30, candidates=1, rounds=1)(game))

    assert searched.value > alone["prompts.tokens"].value


def test_answers_that_do_not_depend_on_the_prompt_read_nothing(game: Game) -> None:
    class Deaf(Reader):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(torch.zeros_like(tokens))

    torch.manual_seed(0)
    deaf = game.behind(sn.Shield(Deaf().eval(), axis=-1))

    tokens = found(PromptInversion(tokens=3, texts=30)(deaf))["prompts.tokens"]

    assert tokens.low <= tokens.baseline + 0.02


def test_prompts_are_asked_through_a_mask(game: Game) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = game.shield.model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            assert (attention_mask.sum(1) > 0).all()
            scores: Tensor = self.reader(input_ids * attention_mask)
            return scores

    def with_mask(tokens: Tensor) -> dict[str, Tensor]:
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    sets = {
        name: with_mask(getattr(game, name).inputs)
        for name in ("members", "nonmembers", "auxiliary")
    }
    report = sn.audit(
        sn.Shield(Masked().eval(), axis=-1),
        **sets,
        tier=sn.Tier("prompts", (PromptInversion(tokens=2, texts=20),)),
    )

    assert "prompts.exact" in {finding.name for finding in report.subjects[0].findings}


def test_the_hidden_size_is_found_bare_and_as_log_probabilities_and_not_behind_bins(
    game: Game,
) -> None:
    rates = {
        "bare": found(HiddenSize()(game))["model.hidden_size"],
        "probabilities": found(HiddenSize()(behind(game, release="probabilities")))[
            "model.hidden_size"
        ],
        "two decimals": found(HiddenSize()(behind(game, sn.Round(2))))["model.hidden_size"],
        "top": found(HiddenSize()(behind(game, sn.TopK(3))))["model.hidden_size"],
    }

    assert rates["bare"].value == rates["probabilities"].value == 1.0
    assert rates["bare"].note == f"rank {HIDDEN + 1}, of which 1 may be a bias"
    assert rates["two decimals"].value == rates["top"].value == 0.0


def test_a_hidden_layer_as_wide_as_the_vocabulary_has_no_rank_to_find(game: Game) -> None:
    wide = game.behind(sn.Shield(Reader(hidden=64).eval(), axis=-1))

    assert found(HiddenSize()(wide))["model.hidden_size"].value == 0.0


def test_the_hidden_size_is_found_in_half_precision_and_where_logits_are_small(game: Game) -> None:
    class Small(Reader):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) / 1000

    torch.manual_seed(0)
    for model in (Reader().bfloat16(), Small()):
        outcome = HiddenSize()(game.behind(sn.Shield(model.eval(), axis=-1)))
        assert found(outcome)["model.hidden_size"].value == 1.0


def test_a_model_that_says_the_same_of_everything_has_no_size_to_find(game: Game) -> None:
    class Deaf(Reader):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(torch.zeros_like(tokens[:, :1])).expand(-1, tokens.shape[1], -1)

    outcome = HiddenSize()(game.behind(sn.Shield(Deaf().eval(), axis=-1)))

    assert found(outcome)["model.hidden_size"].value == 0.0


@pytest.mark.parametrize("preset", ["strict", "balanced", "open"])
def test_a_bias_for_each_token_undoes_every_preset(game: Game, preset: str) -> None:
    hardened = game.behind(sn.harden(game.shield.model, preset, axis=-1))

    assert found(LogitBias(rows=4, tokens=6)(hardened))["model.logits_by_bias"].value > 0.9


def test_secrets_of_language_models_do_not_fit_one_row_an_answer() -> None:
    sets = [as_examples(torch.rand(30, 4), name) for name in ("members", "nonmembers")]
    classifier = Game(sn.Shield(nn.Linear(4, 3)), *sets)

    for attack in (PromptInversion(), HiddenSize(), LogitBias()):
        with pytest.raises(NotApplicable, match="one row an answer"):
            attack(classifier)
