import copy
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Game
from shieldnet.checks.memorization import Memorization, alone, self_influence, top_share
from shieldnet.core.statistics import auc
from shieldnet.data.examples import Canaries, Examples
from shieldnet.demo import Split, digits, train
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.shield.module import Shield

MISLABELED = 100
"""A fifth of the members."""


def found(game: Game) -> dict[str, Finding]:
    findings = Memorization(resamples=200)(game).findings
    return {finding.name.removeprefix("memorization."): finding for finding in findings}


def mislabeled(name: str, inputs: torch.Tensor, labels: torch.Tensor, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 10, labels.shape, generator=generator)
    return Examples(name, inputs, (labels + steps) % 10)


@pytest.fixture(scope="module")
def canaries(digits_split: Split) -> Canaries:
    inputs, labels = digits_split.members
    others, truth = digits_split.auxiliary
    return Canaries(
        "mislabeled",
        planted=mislabeled("canaries", inputs[:MISLABELED], labels[:MISLABELED], 0),
        held_out=mislabeled("held-out canaries", others[:MISLABELED], truth[:MISLABELED], 1),
    )


@pytest.fixture(scope="module")
def with_canaries(digits_split: Split, canaries: Canaries) -> Game:
    """A game whose model learned the canaries among its members."""
    inputs, labels = (part[MISLABELED:] for part in digits_split.members)
    planted = canaries.planted
    data = torch.cat([planted.inputs, inputs]), torch.cat([planted.labels, labels])
    return Game(
        Shield(train(digits(), replace(digits_split, members=data))),
        Examples("members", inputs, labels),
        Examples("nonmembers", *digits_split.nonmembers),
        canaries=canaries,
    )


def test_mislabeled_canaries_rank_above_ordinary_members(with_canaries) -> None:
    finding = found(with_canaries)["canaries"]
    assert finding.low > 0.7
    assert finding.note.endswith("It finds them among the members")
    assert finding.samples == 500
    assert finding.threat.white_box


def test_canaries_that_trained_nothing_rank_higher_still(with_canaries, canaries) -> None:
    """Self-influence finds what the model fits least: the model fits planted canaries better."""
    planted = found(with_canaries)["canaries"]
    swapped = replace(canaries, planted=canaries.held_out)
    held_out = found(replace(with_canaries, canaries=swapped))["canaries"]
    assert held_out.low > planted.high


def test_members_of_a_model_that_memorized_have_less_self_influence(with_canaries) -> None:
    finding = found(with_canaries)["members"]
    assert finding.low > 0.5
    assert finding.baseline == 0.5


def test_a_model_that_never_saw_the_data_tells_no_members(make_game, digits_split) -> None:
    stranger = train(digits(), replace(digits_split, members=digits_split.auxiliary))
    finding = found(make_game(model=stranger))["members"]
    assert finding.low < 0.5 < finding.high


def test_an_untrained_model_holds_no_record_above_the_others(make_game, with_canaries) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = digits().make_model().eval()
    shares = found(make_game(model=untrained))
    assert shares["top_share"].high < 0.1
    assert shares["members"].low < 0.5 < shares["members"].high
    assert found(with_canaries)["top_share"].low > 0.3


def test_the_share_of_equal_records_is_the_baseline() -> None:
    share = top_share(torch.ones(130), seed=0, resamples=50)  # 5 % are six rows and a half
    assert share.value == pytest.approx(0.05)
    assert share.low == pytest.approx(0.05)
    assert share.high == pytest.approx(0.05)


def test_the_share_of_one_record_that_holds_everything_is_one() -> None:
    share = top_share(torch.tensor([0.0] * 99 + [3.0]), seed=0, resamples=500)
    assert share.value == 1
    assert share.low == 0  # a resample may miss the record
    assert share.high == 1


def test_the_bootstrap_covers_the_share_of_the_population() -> None:
    """Of an exponential distribution the top 5 % hold .05 (1 + log 20)."""
    generator = torch.Generator().manual_seed(0)
    truth, hits = 0.05 * (1 + torch.log(torch.tensor(20.0)).item()), 0
    for seed in range(100):
        draws = -torch.rand(500, generator=generator).log()
        share = top_share(draws, seed=seed, resamples=200)
        hits += share.low <= truth <= share.high
    assert hits >= 85


def test_self_influence_is_the_squared_gradient_of_the_last_weights(
    digits_model, digits_split
) -> None:
    inputs, labels = digits_split.members
    layer = digits_model[-1]
    exact = []
    double = copy.deepcopy(digits_model).double()
    for row, label in zip(inputs[:40].double(), labels[:40], strict=True):
        loss = nn.functional.cross_entropy(double(row.unsqueeze(0)), label.unsqueeze(0))
        (gradient,) = torch.autograd.grad(loss, double[-1].weight)
        exact.append(gradient.square().sum())
    features = double[:-1](inputs[:40].double()).detach()
    by_captum = self_influence(alone(layer), features, labels[:40])
    torch.testing.assert_close(by_captum, torch.stack(exact), rtol=1e-5, atol=0)


def test_findings_rest_on_the_gradient_of_the_model_itself(make_game, digits_model) -> None:
    game = make_game()
    scores = {}
    for one in (game.members, game.nonmembers):
        read = digits_model[:-1](one.inputs).detach().double()
        scores[one.name] = self_influence(alone(digits_model[-1]), read, one.labels)
    by_hand = auc(-scores["members"], -scores["nonmembers"])
    findings = found(game)
    assert findings["members"].value == pytest.approx(by_hand.value, abs=1e-4)
    theirs = top_share(scores["nonmembers"], seed=0, resamples=2).value
    assert findings["top_share"].note.endswith(f"of the nonmembers' by theirs: {theirs:.3f}")


def test_a_yes_or_no_is_one_weight_row() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (30,), generator=generator)
    head = alone(nn.Linear(5, 1))
    exact = (head(features)[:, 0].sigmoid() - labels).square() * features.square().sum(1)
    torch.testing.assert_close(self_influence(head, features, labels), exact.detach())


@pytest.mark.parametrize(
    ("last", "outputs"),
    [(nn.Sigmoid(), "binary_probabilities"), (nn.Flatten(0), "binary_logits")],
    ids=["probability", "one number a row"],
)
def test_a_yes_or_no_may_be_given_in_any_form(last, outputs) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=generator)
    labels = torch.randint(0, 2, (60,), generator=generator)
    sets = (
        Examples("members", inputs[:30], labels[:30]),
        Examples("nonmembers", inputs[30:], labels[30:]),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    other = nn.Sequential(model, last).eval()
    assert found(Game(Shield(other, outputs=outputs), *sets)) == found(
        Game(Shield(model, outputs="binary_logits"), *sets)
    )


class Wrapped(nn.Module):
    """Gives the scores among other things, and has a layer after the last in its list."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Linear(3, 10)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.model(x), "hidden": x}


@pytest.mark.parametrize(
    ("wrap", "settings"),
    [
        (lambda model: nn.Sequential(model, nn.Softmax(-1)), {"outputs": "probabilities"}),
        (lambda model: nn.Sequential(model, nn.LogSoftmax(-1)), {}),
        (Wrapped, {"drop": ("hidden",)}),
    ],
    ids=["probabilities", "log probabilities", "dict"],
)
def test_the_form_of_the_answer_changes_nothing(make_game, digits_model, wrap, settings) -> None:
    plain = found(make_game())["top_share"]
    wrapped = found(make_game(model=wrap(digits_model).eval(), **settings))["top_share"]
    assert wrapped.value == pytest.approx(plain.value, rel=1e-4)


def test_the_shield_changes_nothing_for_who_holds_the_model(make_game) -> None:
    assert found(make_game(sn.Label())) == found(make_game())


def test_the_model_and_the_global_seed_are_untouched(make_game, digits_model) -> None:
    model = copy.deepcopy(digits_model)
    model[-1].weight.requires_grad_(False)
    state, seed = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found(make_game(model=model))
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model[-1].weight.requires_grad
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_the_same_seed_finds_the_same(make_game) -> None:
    assert found(make_game()) == found(make_game())


def test_few_canaries_are_said_to_be_untested(with_canaries, canaries) -> None:
    planted = Examples("canaries", canaries.planted.inputs[:9], canaries.planted.labels[:9])
    outcome = Memorization()(replace(with_canaries, canaries=replace(canaries, planted=planted)))
    assert "memorization.canaries: needs 20 planted canaries, there are 9" in outcome.untested
    assert len(outcome.findings) == 2


class Scaled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) / 2


class Uncopyable(nn.Sequential):
    def __deepcopy__(self, memo: dict) -> nn.Module:
        raise TypeError("cannot pickle a lock")


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (Scaled, "something else gives its scores"),
        (lambda model: nn.Sequential(model, nn.Flatten(), nn.AvgPool1d(2)), "no final linear"),
        (lambda model: Uncopyable(model), "cannot be copied: cannot pickle a lock"),
    ],
    ids=["scaled", "pooled", "uncopyable"],
)
def test_a_model_whose_scores_come_from_elsewhere_does_not_apply(
    make_game, digits_model, wrap, words
) -> None:
    game = make_game(model=wrap(digits_model).eval())
    labels = game.members.labels % game.classes  # pooled: five classes
    members, nonmembers = replace(game.members, labels=labels), game.nonmembers
    with pytest.raises(NotApplicable, match=words):
        Memorization()(replace(game, members=members, nonmembers=nonmembers))


class Session:
    """A function that holds what cannot be copied, as the runtimes of other formats do."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.lock = model, threading.Lock()

    def __call__(self, x):
        return self.model(torch.as_tensor(x)).softmax(-1).detach().numpy()


def test_a_function_of_arrays_does_not_apply(make_game, digits_model) -> None:
    game = replace(make_game(), shield=Shield.around(Session(digits_model)))
    with pytest.raises(NotApplicable, match="no final linear layer"):
        Memorization()(game)


@pytest.mark.parametrize("name", ["members", "nonmembers"])
def test_a_few_rows_do_not_apply(make_game, name) -> None:
    game = make_game()
    rows = getattr(game, name)
    few = {name: Examples(name, rows.inputs[:9], rows.labels[:9])}
    with pytest.raises(NotApplicable, match=f"needs at least 20 rows of {name}, got 9"):
        Memorization()(replace(game, **few))


def test_examples_without_labels_do_not_apply(make_game) -> None:
    game = make_game()
    with pytest.raises(NotApplicable, match=r"pass members=\(inputs, labels\)"):
        Memorization()(replace(game, members=Examples("members", game.members.inputs)))


def test_embeddings_do_not_apply(make_game) -> None:
    with pytest.raises(NotApplicable, match="the model gives embeddings"):
        Memorization()(make_game(outputs="embeddings"))


def test_a_model_without_any_gradient_left_does_not_apply(make_game, digits_split) -> None:
    """One feature of a million for the true class: every probability is 0 or 1."""
    game = make_game()
    inputs = nn.functional.one_hot(game.members.labels, 10).float()
    sure = nn.Linear(10, 10, bias=False)
    sure.weight.data = 1e6 * torch.eye(10)
    examples = Examples("members", inputs, game.members.labels)
    with pytest.raises(NotApplicable, match="all gradients are 0"):
        Memorization()(Game(Shield(sure), examples, replace(examples, name="nonmembers")))
