import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Game, Membership
from shieldnet.attacks.answers import Answers
from shieldnet.attacks.membership.attack import (
    log_probabilities,
    membership_scores,
)
from shieldnet.attacks.membership.blind import blind_finding
from shieldnet.attacks.membership.reporting import written
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.attacks.membership.signals import floor_of
from shieldnet.attacks.shadow_answers import Shadows
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.core.randomness import replayed_noise
from shieldnet.core.statistics import auc
from shieldnet.data.examples import Examples, Group
from shieldnet.demo import digits
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield


def random_labels(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 20, generator=generator)
    return inputs, torch.randint(0, 5, (count,), generator=generator)


def memorizer(inputs: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


MEMBERS, NONMEMBERS, STRANGERS = (random_labels(300, seed) for seed in range(3))


@pytest.fixture(scope="module")
def learned_by_heart() -> nn.Module:
    return memorizer(*MEMBERS)


def play(model: nn.Module, *defenses, members=MEMBERS) -> dict:
    game = Game(
        Shield(model, *defenses),
        Examples("members", *members),
        Examples("nonmembers", *NONMEMBERS),
    )
    outcome = Membership()(game)
    return {finding.name: finding for finding in outcome.findings}


@pytest.mark.parametrize("chain", [(), (sn.TopK(3), sn.Round(1)), (sn.Confidence(4),)], ids=str)
def test_members_of_a_model_that_memorized_are_found(learned_by_heart, chain) -> None:
    found = play(learned_by_heart, *chain)
    assert found["membership.auc"].low > 0.8
    assert found["membership.loss.auc"].low > 0.8


def test_labels_alone_still_tell_members(learned_by_heart) -> None:
    """No shaping of answers bounds membership: the correctness gap needs the label only."""
    assert play(learned_by_heart, sn.Label())["membership.correctness gap.auc"].low > 0.7


def test_nobody_is_found_in_a_model_that_never_saw_either_set(learned_by_heart) -> None:
    found = play(learned_by_heart, members=STRANGERS)
    for name, finding in found.items():
        if name.endswith("auc"):
            assert finding.low <= 0.5 <= finding.high


def test_true_positives_at_one_percent_are_found_bare(learned_by_heart) -> None:
    found = play(learned_by_heart)["membership.tpr_at_fpr_1e-2"]
    assert found.value > 0.03 > found.baseline
    assert found.low == 0  # 300 nonmembers cannot vouch for any threshold


def test_the_worst_attack_is_the_headline_with_an_interval_for_all(learned_by_heart) -> None:
    found = play(learned_by_heart)
    each = [
        one
        for name, one in found.items()
        if name.endswith(".auc") and name.count(".") == 2 and "group" not in name
    ]
    assert len(each) == 6  # five thresholds and labels of moved copies
    assert found["membership.auc"].value == max(one.value for one in each)


def test_a_rate_that_the_sample_cannot_tell_is_listed_as_untested(learned_by_heart) -> None:
    game = Game(
        Shield(learned_by_heart), Examples("members", *MEMBERS), Examples("nonmembers", *NONMEMBERS)
    )
    outcome = Membership()(game)
    assert outcome.untested == (
        "membership.tpr_at_fpr_1e-3: needs 3000 nonmembers, there are 300 with distinct inputs",
    )


def test_the_richer_answer_never_seems_safer_by_much(learned_by_heart) -> None:
    """Whoever sees the scores can round them himself: capped loss does."""
    bare, cut = play(learned_by_heart), play(learned_by_heart, sn.TopK(3), sn.Round(1))
    assert bare["membership.auc"].value >= cut["membership.auc"].value - 0.02


def test_scores_by_hand() -> None:
    log_p = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    found = membership_scores(log_p, torch.tensor([1]))
    assert float(found["loss"]) == pytest.approx(math.log(0.2 / 0.8))
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert float(found["entropy"]) == pytest.approx(-entropy)
    modified = -0.8 * math.log(0.2) - 0.7 * math.log(0.3) - 0.1 * math.log(0.9)
    assert float(found["modified entropy"]) == pytest.approx(-modified)
    assert float(found["correctness gap"]) == 0


def test_the_log_odds_are_not_clipped() -> None:
    """Clipping p before the logit costs most of the power at low false-positive rates."""
    answers = Answers(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[40.0, 0], [60.0, 0]]))
    scores = membership_scores(log_probabilities(answers), torch.tensor([0, 0]))["loss"]
    assert scores.tolist() == pytest.approx([40, 60])


def test_too_few_members_and_bad_labels_are_refused(learned_by_heart) -> None:
    few = tuple(part[:5] for part in MEMBERS)
    with pytest.raises(NotApplicable, match="at least 20 rows of members, got 5"):
        play(learned_by_heart, members=few)
    with pytest.raises(DataError, match="labels of the members from 0 to 4, got 0 to 9"):
        play(learned_by_heart, members=(MEMBERS[0], torch.arange(300) % 10))


def test_noise_does_not_hide_members_from_whoever_asks_often(learned_by_heart) -> None:
    game = Game(
        Shield(learned_by_heart, sn.GaussianNoise(20.0)),
        Examples("members", *MEMBERS),
        Examples("nonmembers", *NONMEMBERS),
    )
    with replayed_noise(0):
        once = {one.name: one for one in Membership()(game).findings}["membership.auc"]
        (often,) = Membership(queries=64)(game).findings
    assert often.name == "membership.averaged.64"
    assert often.low > once.high


RECIPE = sn.Recipe(
    lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)),
    epochs=30,
    learning_rate=0.05,
)
OWNED = random_labels(400, 7)
SETS = {
    "members": Examples("members", *MEMBERS),
    "nonmembers": Examples("nonmembers", *NONMEMBERS),
    "auxiliary": Examples("auxiliary", *OWNED),
}


@pytest.fixture(scope="module")
def own_shadows() -> Shadows:
    plan = ShadowPlan(RECIPE, 16, Shield(RECIPE(MEMBERS, 99)), **SETS)
    return train_shadows(plan, engine="inline")


def by_shadows(model: nn.Module, shadows: Shadows, *defenses, members=MEMBERS, **more) -> dict:
    sets = {**SETS, "members": Examples("members", *members)}
    game = Game(Shield(model, *defenses), **sets, shadows=shadows, **more)
    return {finding.name: finding for finding in Membership()(game).findings}


@pytest.mark.parametrize(
    "chain", [(), (sn.TopK(3), sn.Round(1)), (sn.Confidence(4),), (sn.Label(),)], ids=str
)
def test_shadows_find_members_behind_every_shield(own_shadows, chain) -> None:
    found = by_shadows(RECIPE(MEMBERS, 99), own_shadows, *chain)
    for name in ("LiRA", "LiRA offline", "ensemble", "label only against shadows"):
        assert found[f"membership.{name}.auc"].low > 0.6, name
    assert found["membership.auc"].threat.shadows in (0, 16)
    assert found["membership.pooled.LiRA.auc"].low > 0.6
    assert found["membership.pooled.LiRA.auc"].threat.shadows == 12


@pytest.mark.parametrize("chain", [(), (sn.Confidence(4),)], ids=str)
def test_shadows_find_nobody_in_a_model_that_never_saw_either_set(own_shadows, chain) -> None:
    """The shadows were trained on the records; the target was trained on strangers."""
    found = by_shadows(RECIPE(STRANGERS, 99), own_shadows, *chain)
    for name, finding in found.items():
        if name.endswith("auc") and "pooled" not in name:
            assert finding.low <= 0.5 <= finding.high, name


def test_symbols_are_compared_where_answers_are_few(own_shadows) -> None:
    assert "membership.symbols.auc" not in by_shadows(RECIPE(MEMBERS, 99), own_shadows)
    assert "membership.symbols.auc" in by_shadows(RECIPE(MEMBERS, 99), own_shadows, sn.Label())


def test_the_worst_group_is_named_with_an_interval_for_all_groups(own_shadows) -> None:
    marked = torch.arange(300) < 40
    group = Group("new customers = 1", marked, marked)
    found = by_shadows(RECIPE(MEMBERS, 99), own_shadows, groups=(group,))
    worst = found["membership.worst_group.auc"]
    assert "of 6 groups" in worst.source
    assert worst.samples < 600
    assert worst.low > 0.6


def test_a_class_that_is_given_as_a_group_counts_once_by_the_given_name(own_shadows) -> None:
    labels = [SETS[name].labels for name in ("members", "nonmembers")]
    named = [Group(f"outcome = {label}", *(one == label for one in labels)) for label in range(5)]
    found = by_shadows(RECIPE(MEMBERS, 99), own_shadows, groups=tuple(named))
    worst = found["membership.worst_group.auc"]
    assert "on outcome = " in worst.source
    assert "of 5 groups" in worst.source


def test_noise_is_averaged_for_the_target_and_its_shadows_alike(own_shadows) -> None:
    game = Game(Shield(RECIPE(MEMBERS, 99), sn.GaussianNoise(8.0)), **SETS, shadows=own_shadows)
    with replayed_noise(0):
        once = {one.name: one for one in Membership()(game).findings}["membership.auc"]
        (often,) = Membership(queries=64)(game).findings
    assert often.low > 0.6
    assert often.value > once.value
    assert often.threat.queries == 64


def test_members_that_can_be_told_without_the_model_void_the_finding(learned_by_heart) -> None:
    shifted = MEMBERS[0] + 0.7, MEMBERS[1]
    blind = blind_finding(Examples("members", *shifted), Examples("nonmembers", *NONMEMBERS), 0)
    assert blind.low > 0.5
    game = Game(
        Shield(learned_by_heart),
        Examples("members", *shifted),
        Examples("nonmembers", *NONMEMBERS),
        blind=blind,
    )
    with pytest.raises(NotApplicable, match="void, members can be told .* without the model"):
        Membership()(game)


@pytest.mark.parametrize("wrong", [0.15, 0.3])
@pytest.mark.parametrize("side", [0, 1])
def test_labels_that_are_harder_in_one_set_void_the_finding(wrong, side) -> None:
    """A model that saw neither set calls the records with right labels members (AUC .58, .61)."""
    x, y = digits().inputs, digits().labels
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    parts = [order[:600], order[600:1200]]
    labels = y.clone()
    noisy = parts[side][torch.rand(600, generator=generator) < wrong]
    labels[noisy] = torch.randint(0, 10, (len(noisy),), generator=generator)
    sets = [Examples(name, x[rows], labels[rows]) for name, rows in zip("ab", parts, strict=True)]
    found = blind_finding(*sets, 0)
    assert found.low > 0.5
    assert "their labels are" in found.source


@pytest.mark.parametrize("times", [4, (1, 9)])
def test_records_that_stand_in_a_set_more_than_once_void_nothing(digits_split, times) -> None:
    """Each nonmember four times read as .775."""
    x, y = digits_split.nonmembers
    members = Examples("members", x[:200], y[:200])
    rest = torch.arange(200, 400)
    rows = rest.repeat(4) if times == 4 else torch.cat([rest, rest[:20].repeat(8)])
    found = blind_finding(members, Examples("nonmembers", x[rows], y[rows]), 0)
    assert found.low <= 0.5


def test_a_fair_split_is_not_void() -> None:
    hits = 0
    for seed in range(20):
        sets = [Examples(str(place), *random_labels(150, 100 * seed + place)) for place in (1, 2)]
        hits += blind_finding(*sets, seed).low > 0.5
    assert hits <= 1


def test_labels_that_are_missing_are_a_reason_not_an_error(learned_by_heart) -> None:
    game = Game(
        Shield(learned_by_heart),
        Examples("members", MEMBERS[0]),
        Examples("nonmembers", *NONMEMBERS),
    )
    with pytest.raises(NotApplicable, match=r"needs labels: pass members=\(inputs, labels\)"):
        Membership()(game)


def test_a_quantile_is_never_learned_from_what_is_scored(learned_by_heart) -> None:
    """A peer scores its own training rows: 14 % true at 6 % false positives without any signal."""
    sets = {**SETS, "members": Examples("members", *STRANGERS)}
    game = Game(Shield(learned_by_heart), **sets)
    found = {finding.name: finding for finding in Membership()(game).findings}
    quantile = found["membership.quantile.auc"]
    assert quantile.low <= 0.5 <= quantile.high


def test_ties_are_counted_as_halves_wherever_they_lie() -> None:
    """A peer's AUC is wrong when the lowest scores tie, as rounded answers do."""
    positives = torch.tensor([0.0, 0.0, 0.0, 1.0])
    negatives = torch.tensor([0.0, 0.0, 0.0, 0.0])
    assert auc(positives, negatives).value == pytest.approx(0.5 * 3 / 4 + 1 / 4)


def test_a_released_zero_reads_as_half_the_least_that_is_released(own_shadows) -> None:
    """As logits it is -1024, and a handful of those would drown what all other shadows say."""
    model = RECIPE(MEMBERS, 99)
    game = Game(Shield(model, sn.TopK(3), sn.Round(1)), **SETS, shadows=own_shadows)
    answers = game.ask(game.members)
    assert answers.logits is None
    assert (answers.distribution == 0).any()
    floor = floor_of(game, 1)
    least = float(answers.distribution[answers.distribution > 0].min())
    assert floor == pytest.approx(least / 2, rel=0.3)
    assert float(log_probabilities(answers, floor).min()) == pytest.approx(math.log(floor))
    found = by_shadows(model, own_shadows, sn.TopK(3), sn.Round(1))
    assert found["membership.LiRA.auc"].value > found["membership.loss.auc"].value - 0.02


def test_a_record_that_stands_twice_counts_once(make_game) -> None:
    """Each nonmember four times over made the interval half as wide, and alarms of chance."""
    game = make_game()
    inputs, labels = game.nonmembers.inputs[:100], game.nonmembers.labels[:100]
    found = []
    for times in (1, 4):
        copies = Examples("nonmembers", inputs.repeat(times, 1, 1, 1), labels.repeat(times))
        lines = Membership()(replace(game, nonmembers=copies)).findings
        found.append({one.name: (one.low, one.value, one.high, one.samples) for one in lines})
    assert found[0]["membership.loss.auc"] == found[1]["membership.loss.auc"]
    assert found[1]["membership.loss.auc"][3] == len(game.members) + 100


def test_equal_rows_of_few_categories_are_different_persons() -> None:
    """Twelve kinds of people among hundreds are not twelve records."""
    generator = torch.Generator().manual_seed(0)
    sets = {}
    for name in ("members", "nonmembers"):
        kinds = torch.randint(0, 12, (300,), generator=generator)
        sets[name] = Examples(name, nn.functional.one_hot(kinds, 12).float(), kinds % 2)
    found = {one.name: one for one in Membership()(Game(Shield(nn.Linear(12, 2)), **sets)).findings}
    assert found["membership.loss.auc"].samples == 600


def test_a_rate_stands_in_the_name_as_it_is() -> None:
    assert [written(rate) for rate in (1e-2, 1e-3, 0.3, 0.0149, 1 / 3)] == [
        *("1e-2", "1e-3", "3e-1", "0.0149", "0.3333333333333333")
    ]
    for rates in ((0.014, 0.014), (0.0,), (1.0,), (math.nan,)):
        with pytest.raises(ConfigError, match="fprs"):
            Membership(fprs=rates)


def test_shadows_that_only_stand_for_the_models_own_are_said_to(own_shadows) -> None:
    shield = Shield(RECIPE(MEMBERS, 99))
    weak = replace(own_shadows, weaker=True, how="4 small networks stand for them")
    line = "membership by shadows trained as the model was: 4 small networks stand for them"
    assert line in Membership()(Game(shield, **SETS, shadows=weak)).untested
    own = Membership()(Game(shield, **SETS, shadows=own_shadows)).untested
    assert not any("stand for them" in one for one in own)


def test_texts_with_another_share_of_a_token_are_told_apart_without_the_model() -> None:
    """All texts have every token: how often tells, which ones does not."""
    generator = torch.Generator().manual_seed(0)
    usual, odd = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 2.0])
    sets = [
        torch.multinomial(chances.expand(200, 4), 60, replacement=True, generator=generator)
        for chances in (usual, odd, usual)
    ]
    texts = [Examples(name, tokens) for name, tokens in zip("abc", sets, strict=True)]
    assert blind_finding(texts[0], texts[1], seed=0).low > 0.5
    assert blind_finding(texts[0], texts[2], seed=0).low < 0.5
