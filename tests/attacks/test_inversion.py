from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Averaging, Game, Inversion, Reidentification
from shieldnet.attacks.decoders import Decoder, KernelRidge, NearestNeighbors, Network, Ridge
from shieldnet.attacks.inversion import Scale, choose, label_means, standardize
from shieldnet.data import Examples
from shieldnet.errors import DataError
from shieldnet.finding import NotApplicable
from shieldnet.randomness import replayed_noise
from shieldnet.shield import Shield

QUICK = (Ridge(), KernelRidge(), NearestNeighbors())


class Blind(nn.Module):
    """Answers from a hash of the input: its scores say nothing that a decoder could learn."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        places = torch.arange(1, flat.shape[1] + 1)
        mixed = (flat * places).sum(1, keepdim=True) * torch.arange(1.0, 6.0) * 1e4
        return mixed.sin() * 3


def test_the_bare_model_leaks_and_the_presets_take_it_back(make_game) -> None:
    found = {
        name: Inversion(decoders=QUICK)(make_game(*sn.harden(nn.Identity(), name).defenses))
        for name in ("open", "balanced", "strict")
    }
    bare = Inversion(decoders=QUICK)(make_game()).findings[0]
    leak = {name: outcome.findings[0] for name, outcome in found.items()}
    assert bare.low > 0.35
    assert leak["open"].value < bare.value / 2
    assert leak["balanced"].value <= 0.08
    assert leak["strict"].value <= 0.03
    assert leak["open"].high < bare.low
    assert leak["balanced"].high < leak["open"].value


def test_it_finds_nothing_in_answers_that_say_nothing(make_game) -> None:
    finding = Inversion(decoders=QUICK)(make_game(model=Blind())).findings[0]
    assert finding.low <= 0.01
    assert finding.value < 0.02


def test_it_finds_everything_where_the_answer_is_the_input() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 4, generator=generator)
    labels = rows.argmax(1)
    game = Game(
        Shield(nn.Identity()),
        Examples("members", rows[:100], labels[:100]),
        Examples("nonmembers", rows[100:200], labels[100:200]),
        Examples("auxiliary", rows[200:]),
    )
    assert Inversion(decoders=QUICK)(game).findings[0].low > 0.95


def test_reading_p_sees_far_less_than_reading_its_logarithm(make_game) -> None:
    """The naive decoder of the literature sees almost only the label."""
    game = make_game()
    views = game.views(game.ask(game.auxiliary))
    known = game.auxiliary.inputs.flatten(1)
    error = {
        name: choose((KernelRidge(),), {name: views[name]}, known, seed=0).error
        for name in ("p", "log p above 1e-8", "logits")
    }
    assert error["logits"] < error["log p above 1e-8"] < 0.8 * error["p"]


def test_fresh_noise_is_averaged_away(make_game) -> None:
    game = make_game(sn.ClipNorm(10.0), sn.GaussianNoise(2.0))
    with replayed_noise(0):
        once = Inversion(decoders=(KernelRidge(),))(game).findings[0]
        often = Inversion(queries=256, decoders=(KernelRidge(),))(game).findings[0]
    assert once.high < often.low
    assert often.name == "averaging.256"
    assert often.threat.queries == 256


def test_averaging_does_not_apply_to_a_shield_that_repeats_itself(make_game) -> None:
    with pytest.raises(NotApplicable, match="the same answer every time"):
        Averaging()(make_game(sn.Label()))


def test_averaging_names_each_number_of_queries(make_game) -> None:
    game = make_game(sn.ClipNorm(10.0), sn.GaussianNoise(8.0))
    few = replace(game, auxiliary=Examples("auxiliary", game.auxiliary.inputs[:60]))
    found = Averaging(queries=(2, 3))(few).findings
    names = [finding.name for finding in found]
    assert names == [
        "membership.averaged.3",
        *("averaging.2", "r2.averaging.2", "averaging.3", "r2.averaging.3"),
    ]
    alone = Averaging(queries=(2, 3))(replace(game, auxiliary=None))
    assert [finding.name for finding in alone.findings] == ["membership.averaged.3"]
    assert alone.untested == ("averaging: inverting needs auxiliary data",)


def test_without_auxiliary_data_there_is_nothing_to_learn_from(make_game) -> None:
    with pytest.raises(NotApplicable, match="pass auxiliary"):
        Inversion()(replace(make_game(), auxiliary=None))


def test_too_few_rows_are_refused(make_game) -> None:
    game = make_game()
    few = replace(game, auxiliary=Examples("auxiliary", game.auxiliary.inputs[:12]))
    with pytest.raises(DataError, match="at least 40 rows of auxiliary, got 12"):
        Inversion()(few)


def test_columns_of_a_table_are_scored_by_name() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 3, generator=generator) * torch.tensor([1.0, 100.0, 1.0])
    model = nn.Linear(3, 2, bias=False)
    model.weight.data = torch.tensor([[0.0, 0.02, 0.0], [0.0, -0.02, 0.0]])
    game = Game(
        Shield(model),
        Examples("members", rows[:50]),
        Examples("nonmembers", rows[50:150]),
        Examples("auxiliary", rows[150:]),
        columns=("age", "income", "height"),
    )
    found = {one.name: one for one in Inversion(decoders=QUICK)(game).findings}
    assert found["inversion.column.income"].low > 0.9
    assert found["inversion.column.age"].high < 0.2


@pytest.mark.parametrize("decoder", [*QUICK, Network()], ids=repr)
def test_every_decoder_learns_a_map_that_can_be_learned(decoder: Decoder) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 3, generator=generator)
    targets = torch.stack([features[:, 0] + features[:, 1], features[:, 2].abs()], 1)
    guesses = [
        decoder.predict(features[:300], targets[:300], features[300:], setting)
        for setting in decoder.settings
    ]
    best = min(float((guess - targets[300:]).square().mean()) for guess in guesses)
    assert best < (0.5 if isinstance(decoder, Ridge) else 0.3) * float(targets.var(0).mean())


@pytest.mark.parametrize("decoder", [*QUICK, Network()], ids=repr)
def test_every_decoder_takes_constant_features(decoder: Decoder) -> None:
    targets = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    for setting in decoder.settings:
        guess = decoder.predict(torch.zeros(50, 3), targets, torch.zeros(7, 3), setting)
        assert torch.isfinite(guess).all()


def test_decoders_leave_the_global_seed_alone() -> None:
    state = torch.get_rng_state()
    rows = torch.zeros(50, 2)
    Network().predict(rows, rows, rows, (8.0, 2.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_label_decoder_is_the_mean_of_each_class() -> None:
    known = torch.tensor([[1.0], [3.0], [10.0]])
    means = label_means(torch.tensor([0, 0, 2]), known, 4)
    assert means.flatten().tolist() == pytest.approx([2, 14 / 3, 10, 14 / 3])


def test_scales_are_undone_exactly() -> None:
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 7 + 2
    scale = Scale.of(rows)
    assert torch.allclose(scale.undo(scale.apply(rows)), rows, atol=1e-5)
    features, _ = standardize(rows, rows)
    assert torch.allclose(features.std(0), torch.ones(3))


def test_reidentification_is_certain_bare_and_stays_under_its_ceiling(make_game) -> None:
    bare = Reidentification()(make_game()).findings[0]
    assert bare.value == 1
    for chain in ((sn.Label(),), (sn.Confidence(4),)):
        found = Reidentification()(make_game(*chain)).findings[0]
        assert found.ceiling is not None
        assert found.baseline * 0.99 <= found.value <= found.ceiling + 1e-9
        assert not found.crosses_proof


def test_a_shield_that_claims_too_little_crosses_its_proof(make_game, monkeypatch) -> None:
    monkeypatch.setattr(sn.Confidence, "price", lambda *_: sn.Price(bits=0.5))
    assert Reidentification()(make_game(sn.Confidence(64))).findings[0].crosses_proof


def test_averaged_probabilities_are_read_by_their_mean_logarithm(make_game) -> None:
    """Behind noise the mean of log p tells more than the log of the mean of p."""
    game = make_game(sn.ClipNorm(10.0), sn.GaussianNoise(2.0), release="probabilities")
    with replayed_noise(0):
        views = game.views(game.ask(game.auxiliary, 64))
    known = game.auxiliary.inputs.flatten(1)
    error = {
        name: choose((KernelRidge(),), {name: views[name]}, known, seed=0).error
        for name in ("log p above 1e-30", "mean log p")
    }
    assert error["mean log p"] < error["log p above 1e-30"]


def test_whoever_owns_the_gallery_averages_its_noise_away(make_game) -> None:
    game = make_game(sn.GaussianNoise(4.0))
    with replayed_noise(0):
        found = Reidentification()(game).findings[0]
    assert found.low > 4 * found.baseline / 10  # 10 labels among 447: the noise hides the label too
    assert found.value > 0.02


def test_a_column_that_hardly_ever_varies_spoils_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 3, generator=generator)
    rows[:, 2] = 0
    rows[60, 2] = 1.0
    game = Game(
        Shield(nn.Linear(3, 2)),
        Examples("members", rows[:50]),
        Examples("nonmembers", rows[50:150]),
        Examples("auxiliary", rows[150:]),
        columns=("a", "b", "rare"),
    )
    assert len(Inversion(decoders=(Ridge(),))(game).findings) == 5
