"""A search that asks: as near as the answer allows, at nothing where it tells nothing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, Search
from shieldnet.attacks.inversion.candidates import Candidates, missed
from shieldnet.attacks.inversion.numbers import Numbers
from shieldnet.attacks.inversion.tokens import Tokens, _vocabulary
from shieldnet.core.errors import AnswerError
from shieldnet.data.examples import Examples
from shieldnet.data.packing import packed
from shieldnet.findings.finding import NotApplicable
from shieldnet.findings.reading import BY_LABEL

WORDS, LENGTH = 60, 5


class MeanOfWords(nn.Module):
    """Embeds a text as the mean of its words' vectors, of length 1; padding (0) does not count."""

    def __init__(self, pads: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.vectors = nn.Parameter(torch.randn(WORDS, 24, generator=generator))
        self.pads = pads
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens != 0).unsqueeze(2) if self.pads else torch.ones(*tokens.shape, 1)
        total = (self.vectors[tokens] * kept).sum(1)
        return total / total.norm(dim=1, keepdim=True)  # NaN for a text of padding alone


class WithMask(MeanOfWords):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids * attention_mask)


class FirstThree(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows[:, :3] + rows[:, :3] ** 3


class Constant(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return torch.arange(3.0) + 0 * rows.flatten(1).float().sum(1, keepdim=True)


def texts(rows: int, seed: int, low: int = 0) -> Tensor:
    weights = 1 / torch.arange(1.0, WORDS + 1)
    weights[:low] = 0
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(weights.expand(rows, WORDS), LENGTH, generator=generator)


def of_texts(model: nn.Module, *chain: sn.Defense, rows: tuple[Tensor, ...] = (), **settings):
    rows = rows or (texts(40, 0), texts(60, 1), texts(160, 2))
    names = ("members", "nonmembers", "auxiliary")
    sets = {name: Examples(name, part) for name, part in zip(names, rows, strict=True)}
    return Game(sn.Shield(model, *chain, outputs="embeddings", **settings), **sets)


def of_numbers(model: nn.Module, *chain: sn.Defense, columns: int = 4, **settings) -> Game:
    rows = torch.randn(320, columns, generator=torch.Generator().manual_seed(0))
    names = ("members", "nonmembers", "auxiliary")
    parts = rows.split((40, 80, 200))
    sets = {name: Examples(name, part) for name, part in zip(names, parts, strict=True)}
    settings = {"outputs": "embeddings", **settings}
    return Game(sn.Shield(model, *chain, **settings), **sets)


def found(game: Game, attack: Search | None = None) -> dict[str, sn.Finding]:
    return {one.name: one for one in (attack or Search())(game).findings}


@pytest.fixture(scope="module")
def bare() -> dict[str, sn.Finding]:
    return found(of_texts(MeanOfWords()))


def test_words_of_a_mean_of_embeddings_are_found(bare) -> None:
    assert bare["inversion.search.tokens"].low > 0.95 > bare["inversion.search.tokens"].baseline
    assert bare["inversion.search"].low > 0.9
    assert "the decoder that it starts from reaches 0." in bare["inversion.search"].note


def test_every_answer_that_is_asked_for_is_counted(bare) -> None:
    threat = bare["inversion.search"].threat
    assert threat.queries > 100
    assert threat.auxiliary == 160
    assert f"and {threat.queries - 1} about candidates of each" in str(threat)


def test_words_are_found_behind_rounding_and_noise_better_than_by_the_decoder() -> None:
    for chain in ((sn.RoundTo(0.25),), (sn.ClipNorm(1.0), sn.GaussianNoise(0.06))):
        finding = found(of_texts(MeanOfWords(), *chain), Search(queries=48))["inversion.search"]
        reached = float(finding.note.rsplit(" ", 1)[1])
        assert finding.low > reached + 0.1, chain


def test_a_text_of_padding_alone_is_not_asked_about_again() -> None:
    rows = tuple(texts(count, seed) for seed, count in enumerate((40, 60, 160)))
    for part in rows:
        part[: len(part) // 2, -2:] = 0
    game = of_texts(MeanOfWords(pads=True), rows=rows)
    candidates = Candidates.of(game, "numbers")
    refused = candidates.ask(torch.stack([torch.zeros(LENGTH, dtype=torch.int64), rows[0][0]]))
    assert refused.isnan().all(1).tolist() == [True, False]
    assert missed(refused, refused[1:].repeat(2, 1)).tolist() == [torch.inf, 0]
    assert found(game)["inversion.search.tokens"].low > 0.9


def test_of_several_inputs_the_text_is_searched() -> None:
    names = ("members", "nonmembers", "auxiliary")
    sets = {}
    for seed, (name, rows) in enumerate(zip(names, (40, 60, 160), strict=True)):
        inputs = {"input_ids": texts(rows, seed, low=1), "attention_mask": torch.ones(rows, LENGTH)}
        inputs["attention_mask"][: rows // 2, -1] = 0
        inputs["attention_mask"] = inputs["attention_mask"].long()
        rows, packing = packed(inputs, name)
        sets[name] = Examples(name, rows, packing=packing)
    shield = sn.Shield(_Unpacked(WithMask(pads=True), packing), outputs="embeddings")
    assert found(Game(shield, **sets))["inversion.search.tokens"].value > 0.8


class _Unpacked(nn.Module):
    def __init__(self, model: nn.Module, packing) -> None:
        super().__init__()
        self.model, self.packing = model.eval(), packing
        self.training = False

    def forward(self, rows: Tensor) -> Tensor:
        args, kwargs = self.packing.unpacked(rows)
        return self.model(*args, **kwargs)


def test_numbers_of_a_curved_model_are_found_without_its_gradient() -> None:
    finding = found(of_numbers(FirstThree()))["inversion.search"]
    reached = float(finding.note.rsplit(" ", 1)[1])
    assert finding.value > 0.7 > 0.5 > reached - 0.25
    assert finding.value > reached + 0.01


def test_an_answer_that_is_the_input_gives_everything() -> None:
    assert found(of_numbers(nn.Identity()))["inversion.search"].low > 0.95


@pytest.mark.parametrize("kind", ["texts", "numbers"])
def test_a_constant_answer_gives_nothing_away(kind) -> None:
    game = of_texts(Constant()) if kind == "texts" else of_numbers(Constant())
    finding = found(game)["inversion.search"]
    assert (finding.value, finding.low) == (0, 0)
    assert finding.note == BY_LABEL


@pytest.mark.parametrize("seed", range(4))
def test_answers_that_tell_nothing_of_the_input_are_left_for_the_label(seed) -> None:
    """Answers vary, but with a hash of the row."""

    class Hashed(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            wide = (rows.double() * 1e4).sin() * 1e4
            return (wide @ torch.linspace(1, 2, rows.shape[1] * 3).double().reshape(-1, 3)).sin()

    game = replace(of_numbers(Hashed()), seed=seed)
    assert found(game)["inversion.search"].low <= 0


def test_the_search_never_sees_the_truth_of_the_targets() -> None:
    """Behind labels alone, equal answers get equal guesses, whatever the input was."""
    game = of_numbers(FirstThree(), sn.Label(), outputs="logits")
    candidates = Candidates.of(game, "log p above 1e-3")
    seeker = Numbers.of(candidates, game.owned(), 64)
    wanted = candidates.about(game.nonmembers)
    guess = seeker.search(wanted, torch.zeros(len(wanted), 4), 1e-2)
    for label in game.model_labels(game.nonmembers).unique():
        same = guess[game.model_labels(game.nonmembers) == label]
        assert torch.equal(same, same[:1].expand_as(same))


def test_an_encoder_that_is_not_deterministic_is_refused_by_name() -> None:
    class Forgetful(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return nn.functional.dropout(rows, 0.3)

    for settings in ({}, {"micro_batch": 1}):
        with pytest.raises((AnswerError, NotApplicable), match=r"dropout.*model\.eval\(\)"):
            found(of_numbers(Forgetful(), **settings))


def test_repeated_answers_are_compared_by_the_search_itself() -> None:
    class Drifting(nn.Module):
        calls, drifts = 0, False

        def forward(self, rows: Tensor) -> Tensor:
            Drifting.calls += Drifting.drifts
            return rows + Drifting.calls

    game = of_numbers(Drifting())
    game.ask(game.owned())
    Drifting.drifts = True
    with pytest.raises(NotApplicable, match="turn dropout off"):
        Candidates.of(game, "numbers")


def test_whole_numbers_are_asked_about_as_whole_numbers() -> None:
    asked = []

    class Whole(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            asked.append(images.dtype)
            return images.flatten(1).float() / 255

    rows = torch.randint(0, 256, (200, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    parts = zip(
        ("members", "nonmembers", "auxiliary"), rows.byte().split((40, 60, 100)), strict=True
    )
    sets = {name: Examples(name, part) for name, part in parts}
    game = Game(sn.Shield(Whole(), outputs="embeddings"), **sets)
    assert found(game, Search(queries=40))["inversion.search"].low > 0.9
    assert set(asked) == {torch.uint8}


def test_few_rows_and_texts_that_are_all_the_same_are_refused() -> None:
    game = of_texts(MeanOfWords(), rows=(texts(20, 0), texts(20, 1), texts(20, 2)))
    with pytest.raises(NotApplicable, match="at least 40 rows"):
        Search()(game)
    same = texts(1, 0).expand(60, -1).contiguous()
    with pytest.raises(NotApplicable, match="no place of the auxiliary texts varies"):
        Search()(of_texts(MeanOfWords(), rows=(same, same, same)))


def test_practice_rows_are_no_start_of_their_own_search() -> None:
    game = of_texts(MeanOfWords())
    seeker = Tokens.of(Candidates.of(game, "numbers"), game.owned(), 8)
    rest = seeker.without(torch.tensor([0, 3]))
    assert len(rest.own) == 158
    assert torch.equal(rest.own.inputs[0], game.owned().inputs[1])


def test_all_tokens_between_the_ends_are_tried_where_they_are_few() -> None:
    vocabulary, counts = _vocabulary(torch.tensor([[7, 3, 3]]))
    assert vocabulary.tolist() == [3, 4, 5, 6, 7]
    assert counts.tolist() == [2, 0, 0, 0, 1]
    many, counts = _vocabulary(torch.tensor([[0, 10**6, 10**6]]))
    assert (many.tolist(), counts.tolist()) == ([0, 10**6], [1, 2])
