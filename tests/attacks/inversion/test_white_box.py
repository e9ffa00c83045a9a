from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, Inversion
from shieldnet.attacks.adversary.decoders import KernelRidge, Ridge
from shieldnet.attacks.inversion.white_box import Space, StraightThrough, _Match, readings
from shieldnet.core.randomness import replayed_noise
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.module import Shield

STILL = StraightThrough(pulls=())
"""The decoder that the attack starts from, never moved."""
QUICK = StraightThrough(decoders=(Ridge(),), pulls=(1e-3, 1e-1), steps=10)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(10.0) + 0 * x.flatten(1).sum(1, keepdim=True)


class WithoutGraph(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10].detach()


def measured(game: Game, attack: StraightThrough | None = None) -> Finding:
    (finding,) = (attack or StraightThrough())(game).findings
    return finding


def table(model: nn.Module, *defenses, **settings) -> Game:
    """Returns a game on a table of four columns."""
    rows = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    sets = zip(("members", "nonmembers", "auxiliary"), rows.split(200), strict=True)
    return Game(
        Shield(model, *defenses, **settings), *(Examples(name, part) for name, part in sets)
    )


@pytest.fixture(scope="module")
def bare(make_game) -> Finding:
    return measured(make_game())


def test_whoever_holds_the_model_gets_closer_than_the_decoder_it_starts_from(
    make_game, bare
) -> None:
    still = measured(make_game(), STILL)
    assert bare.low > 0.5
    assert bare.value > still.value + 0.01
    assert still.source.endswith("not moved")
    assert "moved with pull" in bare.source


def test_it_passes_a_defense_that_has_no_gradient(make_game) -> None:
    game = make_game(sn.Round(3))
    assert measured(game).value > measured(game, STILL).value


def test_presets_keep_the_holder_of_the_model_from_the_input(make_game, bare) -> None:
    balanced, strict = (
        measured(make_game(*chain)) for chain in ((sn.Confidence(4),), (sn.Label(),))
    )
    assert strict.value <= 0.01
    assert strict.value <= balanced.value + 0.01
    assert balanced.high < 0.1 < bare.low


def test_a_constant_model_gives_nothing_away(make_game) -> None:
    finding = measured(make_game(model=Constant()))
    assert finding.low <= 0
    assert abs(finding.value) < 0.01


def test_it_finds_everything_where_the_answer_is_the_input() -> None:
    assert measured(table(nn.Identity())).low > 0.95


def test_what_a_curved_model_says_is_inverted_by_its_gradient() -> None:
    """A ridge decoder cannot undo a cube; the gradient can."""

    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x**3

    game = table(Cube(), outputs="embeddings")
    attack = StraightThrough(decoders=(Ridge(),))
    assert measured(game, attack).value > 0.9 > measured(game, replace(attack, pulls=())).value


def test_values_and_embeddings_are_inverted_too() -> None:
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    finding = measured(table(model, sn.RoundTo(0.25), outputs="embeddings"))
    assert finding.low > 0.6


def test_the_match_is_judged_through_the_shield_and_moved_by_the_bare_model(make_game) -> None:
    game = make_game(sn.Label())
    inputs = game.nonmembers.inputs[:30]
    learned = readings(game, game.ask(game.auxiliary))["log p above 1e-3"]
    wanted = readings(game, game.ask(game.nonmembers))["log p above 1e-3"]
    match = _Match(game, "log p above 1e-3", learned, wanted[:30])
    assert torch.equal(match.missed(inputs), torch.zeros(30))
    other = replace(match, wanted=wanted[30:60])
    point = inputs.clone().requires_grad_()
    missed = other.missed(point)
    wrong = missed.detach() > 0
    assert wrong.sum() > 15
    (gradient,) = torch.autograd.grad(missed.sum(), point)
    assert torch.equal(gradient.flatten(1).norm(dim=1) > 0, wrong)


def test_the_pull_is_chosen_without_a_look_at_the_targets(make_game) -> None:
    game = make_game()
    other = replace(game, nonmembers=Examples("nonmembers", game.members.inputs[:100]))
    assert measured(game, QUICK).source == measured(other, QUICK).source


def test_it_names_the_adversary_and_the_rows(make_game, bare) -> None:
    assert bare.threat.white_box
    assert bare.threat.auxiliary == 850
    assert bare.threat.queries == 1
    assert bare.samples == 400
    assert bare.baseline == 0


def test_the_global_seed_and_the_model_are_untouched(make_game, digits_model) -> None:
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in digits_model.state_dict().items()}
    measured(make_game(sn.Round(2)), QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert not digits_model.training
    assert all(parameter.grad is None for parameter in digits_model.parameters())
    for name, value in digits_model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "chain", [(sn.Round(3),), (sn.ClipNorm(10.0), sn.GaussianNoise(2.0))], ids=str
)
def test_the_same_seed_gives_the_same_finding(make_game, chain) -> None:
    attack = replace(QUICK, pulls=tuple(0.01 * 1.3**k for k in range(12)))
    findings = []
    for _ in range(2):
        with replayed_noise(3):
            findings.append(measured(make_game(*chain), attack))
    assert findings[0] == findings[1]


def test_it_says_why_it_does_not_apply(make_game) -> None:
    game = make_game()
    rows = game.auxiliary.inputs
    with pytest.raises(NotApplicable, match="pass auxiliary"):
        measured(replace(game, auxiliary=None))
    with pytest.raises(NotApplicable, match="int64 have no gradient"):
        measured(replace(game, auxiliary=Examples("auxiliary", (rows * 16).long())))
    with pytest.raises(NotApplicable, match="no gradient with respect to its input"):
        measured(make_game(model=WithoutGraph()))
    with pytest.raises(NotApplicable, match="at least 40 rows of auxiliary, got 12"):
        measured(replace(game, auxiliary=Examples("auxiliary", rows[:12])))


def test_the_space_has_axes_of_one_deviation_and_the_range_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    space = Space.of(rows, 4)
    assert space.axes.shape == (4, 6)
    coefficients = space.scale.apply(rows) @ torch.linalg.pinv(space.axes)
    assert torch.allclose(coefficients.std(0), torch.ones(4), atol=1e-2)
    far = space.inputs(100 * space.axes)
    assert (far <= rows.amax(0) + 1e-4).all()
    assert (far >= rows.amin(0) - 1e-4).all()
    scaled = space.scale.apply(rows)
    usual = rows.clamp(*torch.sort(rows, 0).values[[3, -4]])  # half a percent on each side is cut
    assert torch.allclose(space.inputs(scaled), usual, atol=1e-4)


def test_a_space_of_rows_that_are_all_the_same_is_a_point() -> None:
    rows = torch.ones(50, 3, dtype=torch.float64)
    space = Space.of(rows, 4)
    moved = space.inputs(torch.randn(2, 1, generator=torch.Generator().manual_seed(0)) @ space.axes)
    assert torch.equal(moved, rows[:2])


def test_units_outliers_and_columns_that_hardly_vary_move_no_leakage() -> None:
    """A column of eight capital gains hid from whoever held the model what it said of the rest."""

    class Tells(nn.Module):
        def __init__(self, times: Tensor) -> None:
            super().__init__()
            self.times = times

        def forward(self, x: Tensor) -> Tensor:
            return (x / self.times)[:, :2]

    def found(times: Tensor, gain: float) -> Finding:
        rows = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
        rows[:, 3] = gain * (torch.arange(900) % 100 == 7)
        sets = {
            name: Examples(name, part * times)
            for name, part in zip(
                ("members", "nonmembers", "auxiliary"), rows.split(300), strict=True
            )
        }
        return measured(Game(Shield(Tells(times), outputs="values"), **sets))

    plain = found(torch.ones(4), 0.0)
    assert plain.low > 0.5
    for times, gain in ((torch.ones(4), 1e6), (torch.tensor([1e3, 1e-3, 1.0, 1.0]), 0.0)):
        other = found(times, gain)
        assert abs(other.value - plain.value) < (plain.high - plain.low) / 2


def test_answers_that_say_no_more_than_the_label_give_nothing_away() -> None:
    """Two decoders that both know the label alone differ a little: that is no leak."""
    generator = torch.Generator().manual_seed(0)
    weights = nn.Linear(6, 4)
    nn.init.normal_(weights.weight, generator=generator)
    for _ in range(5):
        rows = torch.randn(600, 6, generator=generator)
        sets = zip(("members", "nonmembers", "auxiliary"), rows.split(200), strict=True)
        game = Game(Shield(weights, sn.Label()), *(Examples(name, part) for name, part in sets))
        for attack in (StraightThrough(), Inversion(decoders=(Ridge(), KernelRidge()))):
            finding = attack(game).findings[0]
            assert finding.low <= 0 <= finding.high
