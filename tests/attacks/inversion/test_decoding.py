from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Averaging, Game, Inversion, Reidentification
from shieldnet.attacks.adversary.decoders import (
    Decoder,
    KernelRidge,
    NearestNeighbors,
    Network,
    Ridge,
)
from shieldnet.attacks.adversary.features import standardize
from shieldnet.attacks.adversary.label_baseline import label_baseline, label_means
from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.adversary.selection import choose
from shieldnet.core.randomness import replayed_noise
from shieldnet.core.statistics import saved_share
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.module import Shield

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
    assert Inversion(decoders=QUICK)(game).findings[0].low > 0.9


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
    with pytest.raises(NotApplicable, match="at least 40 rows of auxiliary, got 12"):
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


class Reads(nn.Module):
    """Answers by the first column, and a little of the second."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, rows):
        says = 2 * rows[:, 0] - 1 + self.share * rows[:, 1]
        return torch.stack([-says, says], 1)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.8])
def test_a_label_alone_gives_no_column_away_beyond_itself(share) -> None:
    """Of many columns the label told one: its mean was drawn towards that of all with the rest."""
    names = tuple(f"c{number}" for number in range(60))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        rows = (torch.rand(1000, 60, generator=generator) < 0.3).float()
        rows[:, 1] = torch.randn(1000, generator=generator)
        parts = zip(
            ("members", "nonmembers", "auxiliary"), rows.split((300, 400, 300)), strict=True
        )
        game = Game(
            sn.Shield(Reads(share), sn.Label()),
            *(Examples(name, part) for name, part in parts),
            columns=names,
            seed=seed,
        )
        for finding in Inversion(decoders=QUICK)(game).findings:
            if finding.name == "inversion" or finding.name.startswith("inversion.column."):
                assert finding.low <= 0, finding
                assert finding.high < 0.05, finding


def test_only_rows_of_a_class_and_constant_columns_have_a_label_decoder() -> None:
    known = torch.tensor([[1.0, 5.0], [3.0, 5.0], [10.0, 5.0]])
    means = label_baseline(torch.tensor([0, 0, 2]), known, 4)
    assert means.dtype == known.dtype
    assert means.isfinite().all()
    assert means[:, 1].tolist() == pytest.approx([5.0] * 4)
    assert label_baseline(torch.tensor([0]), known[:1], 2)[0].tolist() == [1.0, 5.0]


def test_scales_are_undone_exactly() -> None:
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 7 + 2
    scale = Scale.of(rows)
    assert torch.allclose(scale.undo(scale.apply(rows)), rows, atol=1e-5)
    features, _ = standardize(rows, rows)
    assert torch.allclose(features.std(0), torch.ones(3), atol=0.1)


def test_reidentification_is_certain_bare_and_stays_under_its_ceiling(make_game) -> None:
    bare = Reidentification()(make_game()).findings[0]
    assert bare.value == 1
    for chain in ((sn.Label(),), (sn.Confidence(4),)):
        found = Reidentification()(make_game(*chain)).findings[0]
        assert found.ceiling is not None
        assert found.baseline * 0.99 <= found.value <= found.ceiling + 1e-9
        assert not found.crosses_proof


def test_a_shield_that_claims_too_little_crosses_its_proof(make_game, monkeypatch) -> None:
    monkeypatch.setattr(sn.Confidence, "cost", lambda *_: sn.PrivacyCost(bits=0.5))
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
    outcome = Inversion(decoders=(Ridge(),))(game)
    names = {finding.name.removeprefix("inversion.column.") for finding in outcome.findings}
    assert names == {"inversion", "r2.inversion", "a", "b"}
    (line,) = outcome.untested
    assert line.startswith("inversion of rare: hardly any auxiliary row differs")


def table(rows: int, seed: int) -> torch.Tensor:
    """A table of all that is not tame: dependent, skewed, rare, counted, and two at one value."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(rows, 3, generator=generator)
    mixed = causes @ torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    skewed = (2 * causes[:, :1]).exp()
    counts = torch.poisson(causes[:, 1:2].exp(), generator=generator)
    seldom = (torch.rand(rows, 2, generator=generator) < 0.02).float()
    alone = (torch.arange(rows) == 5).float().unsqueeze(1)
    return torch.cat([mixed, skewed, counts, seldom, alone, torch.ones(rows, 1)], 1)


class Tells(nn.Module):
    """Says the first three columns of what lies in known units, as scores."""

    def __init__(self, shift: torch.Tensor, times: torch.Tensor) -> None:
        super().__init__()
        self.shift, self.times = shift, times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.shift) / self.times)[:, :3]


def leakage_of(sets: dict[str, torch.Tensor], shift=0.0, times=1.0) -> Finding:
    width = next(iter(sets.values())).shape[1]
    shift, times = torch.zeros(width) + shift, torch.ones(width) * times
    moved = {name: Examples(name, rows * times + shift) for name, rows in sets.items()}
    game = Game(Shield(Tells(shift, times), outputs="values"), **moved)
    return Inversion(decoders=(Ridge(), KernelRidge(), NearestNeighbors()))(game).findings[0]


@pytest.fixture(scope="module")
def tables() -> dict[str, torch.Tensor]:
    return {name: table(300, seed) for seed, name in enumerate(("members", "nonmembers"), 1)} | {
        "auxiliary": table(400, 3)
    }


@pytest.fixture(scope="module")
def plain(tables) -> Finding:
    return leakage_of(tables)


def half_width(finding: Finding) -> float:
    return (finding.high - finding.low) / 2


def test_columns_that_say_nothing_hide_no_leak(plain) -> None:
    """Of the columns that vary in many rows nearly all is told."""
    assert plain.value > 0.7
    assert half_width(plain) < 0.15


def test_units_of_columns_move_no_leakage(tables, plain) -> None:
    generator = torch.Generator().manual_seed(1)
    times = torch.randn(12, generator=generator).mul(4).exp() * torch.tensor([1.0, -1.0] * 6)
    found = leakage_of(tables, 5 * torch.randn(12, generator=generator) * times.abs(), times)
    assert abs(found.value - plain.value) < half_width(plain) / 2
    found = leakage_of(tables, times=1000.0)
    assert abs(found.value - plain.value) < half_width(plain) / 2


@pytest.mark.parametrize("among", [("nonmembers",), ("auxiliary",), ("nonmembers", "auxiliary")])
@pytest.mark.parametrize("size", [1e4, 1e8])
def test_a_row_or_column_of_outliers_moves_no_leakage(tables, plain, among, size) -> None:
    """Eight capital gains made a whole finding 1e-6, and a bare model passed its policy."""
    columns = {name: rows.clone() for name, rows in tables.items()}
    lines = {name: rows.clone() for name, rows in tables.items()}
    for name in among:
        columns[name][:8, 11] = size
        lines[name][3] = size
    for changed in (columns, lines):
        found = leakage_of(changed)
        assert abs(found.value - plain.value) < max(half_width(plain), half_width(found))
        assert found.low > 0.5


def test_no_column_falls_far_below_the_label(tables, plain) -> None:
    sets = {name: Examples(name, rows) for name, rows in tables.items()}
    names = tuple(f"c{place}" for place in range(12))
    game = Game(
        Shield(Tells(torch.zeros(12), torch.ones(12)), outputs="values"), **sets, columns=names
    )
    outcome = Inversion(decoders=(Ridge(), KernelRidge()))(game)
    found = {one.name: one for one in outcome.findings if one.name.startswith("inversion.column")}
    assert len(found) == 10
    assert min(one.value for one in found.values()) > -0.2
    assert any(line.startswith("inversion of c10, c11: hardly any") for line in outcome.untested)


@pytest.mark.parametrize("chain", [(), (sn.Round(2),), (sn.TopK(3),)], ids=str)
def test_more_decoders_to_choose_from_make_no_weaker_attack(make_game, chain) -> None:
    """Pixels that hardly vary, of which a decoder misses many times the label, hid the best one."""
    game = make_game(*chain)
    alone = Inversion(decoders=(KernelRidge(),))(game).findings[0].value
    among = Inversion(decoders=(*QUICK, Network()))(game).findings[0].value
    assert among > alone - 0.02


@pytest.mark.parametrize(("columns", "owned"), [(20, 150), (100, 300)])
def test_one_column_that_is_told_is_found_among_many_that_are_not(columns, owned) -> None:
    """A test of all columns together gave up on the one that was read whole."""
    generator = torch.Generator().manual_seed(0)
    sets = {
        name: Examples(name, torch.randn(count, columns, generator=generator))
        for name, count in (("members", 100), ("nonmembers", 200), ("auxiliary", owned))
    }
    model = nn.Linear(columns, 3, bias=False)
    model.weight.data.zero_()
    model.weight.data[:, 0] = torch.tensor([1.0, -1.0, 0.0])
    game = Game(Shield(model), **sets, columns=tuple(f"c{place}" for place in range(columns)))
    found = {one.name: one for one in Inversion(decoders=(Ridge(), KernelRidge()))(game).findings}
    assert found["inversion.column.c0"].low > 0.5
    assert found["inversion"].low > 0.1 / columns


def test_few_rows_that_are_not_read_make_no_interval_endless() -> None:
    errors = 1e-4 * torch.rand(400, generator=torch.Generator().manual_seed(0))
    errors[:3] = 1
    found = saved_share(errors, torch.ones(400), seed=0)
    assert found.value > 0.99
    assert found.low > 0.9


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e6])
def test_rows_that_are_alike_beside_far_ones_end_no_attack(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 1e-3 * torch.randn(500, 3, generator=generator)
    features[:3] += scale
    features[10:200] = features[10]
    targets = torch.randn(500, 4, generator=generator)
    guesses = list(KernelRidge().predict_each(features, targets, features[:50]))
    assert len(guesses) == len(KernelRidge.settings)
    assert all(guess.isfinite().all() for guess in guesses)
