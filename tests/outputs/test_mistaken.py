"""Embeddings are not hardened as logits in silence, and logits are not refused."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.outputs.mistaken import UnitVectors
from shieldnet.shield.settings import ShieldSettings

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class Unit(nn.Module):
    """A sentence embedder, as most are: its vectors have length 1."""

    def __init__(self, name: str | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.name, self.dtype = name, dtype

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        vectors = nn.functional.normalize(x, dim=-1).to(self.dtype)
        return vectors if self.name is None else {self.name: vectors}


class Named(nn.Module):
    """Vectors of any length, under the names that embedders give them."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = x[:, None].expand(-1, 3, -1)
        return {name: tokens if name == "last_hidden_state" else x for name in self.names}


def refused_line(shield: sn.Shield, x: Tensor = X) -> str:
    with pytest.raises(sn.errors.AnswerError, match=r"embeddings.*nothing was rel") as refused:
        shield(x)
    (line,) = re.findall(r"(sn\.Shield\(model.*\)), or (?:insist|pass outputs)", str(refused.value))
    assert "outputs='logits'" in str(refused.value)
    return str(line)


def run(line: str, model: nn.Module) -> sn.Shield:
    shield: sn.Shield = eval(line, {"sn": sn, "model": model})  # noqa: S307 - our own message
    return shield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [sn.harden, lambda m: sn.Shield(m, sn.TopK(2), sn.Round(1))])
def test_vectors_of_length_one_are_refused_with_the_line_that_works(make, dtype) -> None:
    model = Unit(dtype=dtype)
    works = run(refused_line(make(model)), model)
    assert works(X).shape == X.shape
    assert works.settings.outputs == "embeddings"
    insisting = sn.harden(model, outputs="logits")
    assert insisting(X).shape == X.shape


def test_they_are_refused_in_any_field_and_behind_any_axis() -> None:
    refused_line(sn.harden(Unit("logits")))
    tokens = torch.randn(2, 5, 8)
    line = refused_line(sn.harden(Unit(), axis=-1), tokens)
    assert run(line, Unit())(tokens).shape == tokens.shape


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 1}])
def test_row_by_row_they_are_refused_as_soon_as_four_were_seen(settings) -> None:
    shield = sn.harden(Unit(), **settings)
    if settings:
        refused_line(shield)
        return
    for row in range(3):
        shield(X[row : row + 1])
    for row in range(3, 6):
        refused_line(shield, X[row : row + 1])
    refused_line(copy.deepcopy(shield), X[:1])


def test_the_bare_twin_and_settings_without_outputs_are_refused_too() -> None:
    refused_line(sn.harden(Unit()).bare())
    refused_line(sn.Shield(Unit(), ShieldSettings((sn.Label(),))))
    refused_line(sn.harden(Unit()).with_model(Unit()))


@pytest.mark.parametrize(
    "names",
    [
        ("embedding",),
        ("embeddings",),
        ("sentence_embedding",),
        ("pooler_output",),
        ("last_hidden_state",),
        ("last_hidden_state", "pooler_output"),
    ],
)
def test_fields_that_are_called_embeddings_are_refused_whatever_their_length(names) -> None:
    model = Named(*names)
    for settings in ({}, {"axis": -1}):
        works = run(refused_line(sn.harden(model, **settings), X * 3), model)
        released = works(X * 3)
        assert len(released) == 1


def test_a_field_called_embedding_is_answered_where_the_user_insists() -> None:
    shield = sn.harden(Named("embedding"), outputs="logits")
    assert shield(X)["embedding"].shape == X.shape


def test_a_field_of_logits_beside_an_embedding_is_found() -> None:
    model = Named("logits", "embedding")
    with pytest.raises(sn.errors.AnswerError, match="also returns embedding"):
        sn.harden(model)(X)
    assert list(sn.harden(model, drop="embedding")(X)) == ["logits"]


class Says(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


ONE_ROW = nn.functional.normalize(torch.tensor([[1.0, -2.0, 0.5]]), dim=-1)


@pytest.mark.parametrize(
    "logits",
    [
        torch.randn(50, 10, generator=torch.Generator().manual_seed(1)),
        torch.randn(50, 10, generator=torch.Generator().manual_seed(1)) / 10**0.5,
        ONE_ROW,  # length 1, by chance: one row says nothing
        ONE_ROW.expand(3, -1),
        nn.functional.normalize(torch.randn(9, 2), dim=-1),  # two classes are no embedding
        torch.randn(9, 2).tanh(),
        (torch.randn(9, 5) * 20).tanh(),
        torch.eye(5)[torch.arange(9) % 5],  # no number is below 0, and they are no logits
        torch.cat([nn.functional.normalize(torch.randn(40, 6), dim=-1), torch.randn(1, 6)]),
        torch.zeros(0, 4),
    ],
)
def test_logits_are_not_refused(logits) -> None:
    shield = sn.harden(Says())
    if (logits.sum(-1) == 1).all() and len(logits):
        with pytest.raises(sn.errors.AnswerError, match="seem to be probabilities"):
            shield(logits)
        return
    assert shield(logits).shape == logits.shape
    assert shield(logits).shape == logits.shape


def test_one_logit_of_another_length_settles_it() -> None:
    shield = sn.harden(Says())
    shield(torch.randn(5, 6) * 3)
    unit = nn.functional.normalize(torch.randn(9, 6), dim=-1)
    assert shield(unit).shape == unit.shape


def test_normalized_logits_are_answered_where_the_user_says_that_they_are_logits() -> None:
    for outputs in ("logits", {"embedding": "logits"}):
        model = Unit() if outputs == "logits" else Unit("embedding")
        sn.harden(model, outputs=outputs)(X)
        sn.Shield(model, ShieldSettings((sn.Label(),), outputs=outputs))(X)


def test_a_guess_is_equal_to_the_word_and_prints_and_hashes_alike() -> None:
    guess, said = ShieldSettings((sn.Label(),)), ShieldSettings((sn.Label(),), outputs="logits")
    assert guess == said
    assert hash(guess) == hash(said)
    assert repr(guess) == repr(said)
    assert guess.digest() == said.digest()
    assert guess.is_guess
    assert not said.is_guess
    import dataclasses
    import pickle

    assert dataclasses.replace(guess, micro_batch=2).is_guess
    assert pickle.loads(pickle.dumps(guess)).is_guess  # noqa: S301 - our own bytes
    assert not pickle.loads(pickle.dumps(said)).is_guess  # noqa: S301 - our own bytes


def test_a_guess_stays_one_in_a_file(tmp_path) -> None:
    path = tmp_path / "shield.toml"
    path.write_text(sn.dump_shield(sn.harden(Unit())))
    refused_line(sn.load_shield(Unit(), path))
    path.write_text(sn.dump_shield(sn.harden(Unit(), outputs="logits")))
    assert sn.load_shield(Unit(), path)(X).shape == X.shape


def test_a_row_without_negative_numbers_hides_no_embedder() -> None:
    """Of eight dimensions one row in 256 has positive numbers alone."""
    rows = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    rows[0] = rows[0].abs()
    for answers in ([rows], list(rows[:, None])):
        vectors = UnitVectors()
        assert [vectors.found_in(each, torch.float32) for each in answers][-1]
    one_hot = torch.eye(5)
    vectors = UnitVectors()
    assert not vectors.found_in(one_hot, torch.float32)
    assert vectors.done, "and it is not looked for again"
