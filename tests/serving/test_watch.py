"""The watch is silent on ordinary traffic, sees crafted queries, and acts as its policy says."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from scipy.stats import shapiro
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.serving.query_patterns import (
    Profile,
    Queries,
    earlier_distances,
    excess,
    shapiro_wilk,
)
from shieldnet.serving.watch import QueriesRefused, Watch, WatchPolicy

CLASSES, SIDE = 4, 6


def clock_at(times: list[float]):
    return lambda: times[-1]


def natural(rows: int, seed: int, dense: float = 1.0) -> Tensor:
    """Returns images of four classes: a pattern of the class, and texture on few directions.

    dense: the size of the texture of the first class, whose images are nearer to each other.
    """
    generator = torch.Generator().manual_seed(seed)
    of_all = torch.Generator().manual_seed(99)
    centers = torch.randn(CLASSES, SIDE * SIDE, generator=of_all)
    texture = torch.randn(8, SIDE * SIDE, generator=of_all)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    weights = torch.randn(rows, 8, generator=generator) * 0.5
    weights[labels == 0] *= dense
    return (centers[labels] + weights @ texture).reshape(rows, 1, SIDE, SIDE)


@pytest.fixture(scope="module")
def shield() -> sn.Shield:
    of_all = torch.Generator().manual_seed(99)
    centers = torch.randn(CLASSES, SIDE * SIDE, generator=of_all)
    linear = nn.Linear(SIDE * SIDE, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(centers / 8)
        linear.bias.copy_(-centers.square().sum(1) / 16)
    shield = sn.harden(nn.Sequential(nn.Flatten(), linear).eval())
    shield(natural(4, 0))
    return shield


@pytest.fixture(scope="module")
def profile(shield) -> Profile:
    inputs = natural(600, 1)
    return Profile.of(inputs, shield.distribution(shield(inputs)), seed=0)


def asked(watch: Watch, shield: sn.Shield, queries: Tensor, subject: str = "a", rows: int = 1):
    """Asks in batches of ``rows`` and returns the last suspicion."""
    for part in queries.split(rows):
        suspicion = watch.note(subject, part, shield.distribution(shield(part)))
    return suspicion


SILENT = WatchPolicy(1.0, 1.0, 1.0)


@pytest.mark.parametrize("seed", range(10, 16))
def test_ordinary_queries_raise_no_suspicion(shield, profile, seed) -> None:
    suspicion = asked(Watch(profile, SILENT), shield, natural(300, seed), rows=10)
    assert suspicion.score < WatchPolicy().log_above
    assert suspicion.queries == profile.memory


def test_ordinary_queries_about_one_dense_class_raise_no_suspicion(shield) -> None:
    inputs = natural(1000, 1, dense=0.3)
    is_dense = shield.distribution(shield(inputs)).argmax(1) == 0
    inputs = inputs[~is_dense | (torch.arange(1000) % 6 == 0)]  # and a rare one
    profile = Profile.of(inputs, shield.distribution(shield(inputs)), seed=0)
    pool = natural(1600, 2, dense=0.3)
    queries = pool[shield.distribution(shield(pool)).argmax(1) == 0]
    assert len(queries) > 256
    suspicion = asked(Watch(profile, SILENT), shield, queries, rows=10)
    assert suspicion.score < WatchPolicy().log_above


def test_repeats_of_an_ordinary_query_raise_no_suspicion(shield, profile) -> None:
    queries = natural(20, 3).repeat(30, 1, 1, 1)
    suspicion = asked(Watch(profile, SILENT), shield, queries, rows=7)
    assert suspicion.queries == 20  # a repeat is no new query
    assert suspicion.score < WatchPolicy().log_above


def test_ordinary_queries_that_drift_are_not_refused(shield, profile) -> None:
    queries = natural(300, 4) * torch.linspace(1, 0.8, 300).reshape(-1, 1, 1, 1)
    assert asked(Watch(profile, SILENT), shield, queries).score < WatchPolicy().harder_above


@pytest.mark.parametrize("jitter", [1e-5, 0.05])
def test_inputs_moved_a_little_are_close(shield, profile, jitter) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = natural(10, 5).repeat(10, 1, 1, 1)
    queries = queries + jitter * torch.randn(queries.shape, generator=generator)
    suspicion = asked(Watch(profile, SILENT), shield, queries)
    assert suspicion.close > WatchPolicy().refuse_above
    assert suspicion.novel == 0


def test_random_inputs_are_novel(shield, profile) -> None:
    queries = 4 * torch.randn(30, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert asked(Watch(profile, SILENT), shield, queries).novel > WatchPolicy().refuse_above


def test_inputs_chosen_for_low_margins_are_unsure(shield, profile) -> None:
    pool = natural(4000, 6)
    margins = shield.distribution(shield(pool)).topk(2).values.diff().abs().flatten()
    suspicion = asked(Watch(profile, SILENT), shield, pool[margins.argsort()[:40]])
    assert suspicion.unsure > WatchPolicy().harder_above


def test_steps_of_one_length_are_uneven(shield, profile) -> None:
    """As of Jacobian augmentation: each input is an earlier one moved by the same step."""
    generator = torch.Generator().manual_seed(0)
    seeds = natural(100, 7)
    signs = torch.randn(seeds.shape, generator=generator).sign()
    suspicion = asked(Watch(profile, SILENT), shield, torch.cat([seeds, seeds + 0.1 * signs]))
    ordinary = asked(Watch(profile, SILENT), shield, natural(200, 7), rows=16)
    assert ordinary.uneven < 0.05 < 0.1 < suspicion.uneven
    assert suspicion.close > WatchPolicy().harder_above


def test_the_normality_is_that_of_prada() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200, generator=generator) + 9
    assert shapiro_wilk(normal) > 0.98
    spike = torch.cat([normal[:100], torch.full((100,), 5.0)])
    assert shapiro_wilk(spike) < 0.9
    outlier = torch.cat([normal, torch.tensor([1e6])])  # beyond three deviations: left out
    assert shapiro_wilk(outlier) == pytest.approx(shapiro(normal.double().numpy()).statistic)
    assert shapiro_wilk(normal[:20]) == 1.0  # too few to tell
    assert shapiro_wilk(torch.full((200,), 2.0)) == 0.0
    assert shapiro_wilk(torch.full((200,), torch.inf)) == 1.0


def test_distances_are_to_the_nearest_earlier_query_with_the_same_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 5, generator=generator)
    labels = torch.randint(3, (30,), generator=generator)
    queries = Queries(rows, labels, torch.zeros(30))
    expected = [
        min(
            (
                float((rows[place] - rows[other]).norm())
                for other in range(place)
                if labels[other] == labels[place]
            ),
            default=torch.inf,
        )
        for place in range(30)
    ]
    assert earlier_distances(queries).tolist() == pytest.approx(expected)
    assert torch.equal(earlier_distances(queries, 12), earlier_distances(queries)[12:])


def test_an_excess_grows_with_the_share_and_with_the_sample() -> None:
    assert excess(0, 0, 0.01) == excess(1, 100, 0.01) == 0
    assert 0 < excess(3, 3, 0.01) < excess(30, 30, 0.01) < excess(300, 300, 0.01) < 1
    assert excess(10, 30, 0.01) < excess(20, 30, 0.01)


def test_one_batch_is_judged_as_the_same_queries_one_by_one(shield, profile) -> None:
    queries = natural(40, 8).repeat(2, 1, 1, 1)
    queries[50:] += 0.01
    suspicions = [
        # The shape of the distances is looked at now and then.
        replace(asked(Watch(profile, SILENT), shield, queries, rows=rows), uneven=0.0)
        for rows in (1, 7, len(queries))
    ]
    assert suspicions[0] == suspicions[1] == suspicions[2]
    assert suspicions[0].close > 0


def test_a_policy_logs_then_hardens_then_refuses_then_starts_anew(shield, profile, caplog) -> None:
    times, acts = [0.0], []
    watch = Watch(
        profile,
        WatchPolicy(refuse_s=60),
        on_action=lambda *said: acts.append(said),
        clock=clock_at(times),
    )
    queries = 4 * torch.randn(60, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels = []

    def ask_on() -> None:
        for query in queries.split(1):
            chosen = watch.choose("mallory", shield)
            labels.append(str(chosen.chain))
            watch.note("mallory", query, chosen.distribution(chosen(query)))

    with pytest.raises(QueriesRefused, match="refused for a time. Nothing was charged") as refused:
        ask_on()
    assert refused.value.renews_at == 60
    assert [action for _, action, _ in acts] == ["log", "harder", "refuse"]
    assert {subject for subject, _, _ in acts} == {"mallory"}
    switched = labels.index("Label() -> [Log()]")
    assert switched > 0
    assert set(labels[:switched]) == {str(shield.chain)}
    assert set(labels[switched:]) == {"Label() -> [Log()]"}
    assert "mallory" not in caplog.text
    assert caplog.text.count("look like an extraction") == 3
    assert watch.choose("alice", shield) is shield  # each subject by its own queries
    times.append(59.0)
    with pytest.raises(QueriesRefused):
        watch.choose("mallory", shield)
    times.append(60.0)
    assert watch.choose("mallory", shield) is shield
    assert asked(watch, shield, natural(1, 9), "mallory").queries == 1


def test_a_refusal_can_be_lifted(shield, profile) -> None:
    watch = Watch(profile)
    queries = 4 * torch.randn(60, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    asked(watch, shield, queries, rows=60)
    with pytest.raises(QueriesRefused):
        watch.choose("a", shield)
    watch.forget("a")
    assert watch.choose("a", shield) is shield


def test_a_harder_shield_may_not_cost_more_than_what_is_charged(shield, profile) -> None:
    strict = Watch(profile).harder_than(shield)
    assert strict.cost(CLASSES).bits < shield.cost().bits
    assert strict.model is shield.model
    dearer = WatchPolicy(harder=(sn.Round(4),))
    with pytest.raises(ConfigError, match="costs more bits"):
        Watch(profile, dearer).harder_than(shield)
    certified = sn.harden(shield.model, "certified", extent=sn.Extent(CLASSES))
    with pytest.raises(ConfigError, match="costs more bits .2 against 1.989"):
        Watch(profile).harder_than(certified)
    assert Watch(profile, WatchPolicy(harder=(sn.RandomizedResponse(2.0),))).harder_than(certified)
    with pytest.raises(ConfigError, match="extent=Extent"):
        Watch(profile).harder_than(sn.harden(shield.model))


def test_subjects_and_queries_are_kept_in_bounds(shield, profile) -> None:
    watch = Watch(profile, SILENT, max_subjects=3)
    queries = 4 * torch.randn(600, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    for subject in "abcde":
        asked(watch, shield, queries[:5], subject, rows=5)
    assert len(watch._subjects) == 3
    assert asked(watch, shield, natural(1, 0), "e").queries == 6
    assert asked(watch, shield, natural(1, 0), "a").queries == 1  # forgotten: asked least recently
    assert asked(watch, shield, queries, "e", rows=600).queries == profile.memory
    (known,) = [known for known in watch._subjects.values() if len(known.queries) > 6]
    assert len(known.queries) == len(known.digests) == len(known.distances) == profile.memory


def test_no_input_and_no_name_is_kept(shield, profile) -> None:
    watch = Watch(profile)
    query = natural(1, 0)
    asked(watch, shield, query, "alice")
    (name,), (known,) = watch._subjects.keys(), watch._subjects.values()
    assert b"alice" not in name
    assert known.queries.rows.shape == (1, 32)
    assert query.numel() > 32
    shown = repr(watch.profile)
    assert "projection" not in shown
    assert "natural=" not in shown


def test_a_projection_is_secret_and_differs() -> None:
    inputs, distribution = natural(200, 0), torch.rand(200, CLASSES).softmax(-1)
    first, second = (Profile.of(inputs, distribution).projection for _ in range(2))
    assert not torch.equal(first, second)


def test_several_threads_lose_no_query(shield, profile) -> None:
    watch = Watch(profile, SILENT)
    parts = natural(200, 0).split(5)
    answers = [shield.distribution(shield(part)) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: watch.note("a", *pair), zip(parts, answers, strict=True)))
    assert watch.note("a", parts[0], answers[0]).queries == 200


def use_in_child(watch: Watch, shield: sn.Shield, results) -> None:
    known = watch._known("a")
    results.put((watch.choose("b", shield) is shield, len(known.queries), len(known.distances)))
    try:
        watch.choose("a", shield)
    except QueriesRefused:
        results.put("refused")
    watch.forget("a")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_process_that_is_forked_while_a_watch_is_at_work_does_not_hang(shield, profile) -> None:
    watch, fork = Watch(profile, clock=lambda: 0.0), multiprocessing.get_context("fork")
    asked(watch, shield, 9 * torch.rand(60, *profile.scale.shape), rows=60)
    results, known = fork.Queue(), watch._known("a")
    watch.choose("b", shield)
    child = fork.Process(target=use_in_child, args=(watch, shield, results), daemon=True)
    with watch._lock, known.lock:
        known.queries = known.queries.at(torch.arange(30))  # as in the midst of taking queries in
        child.start()
    child.join(20)
    is_over = child.exitcode is not None
    child.kill()
    assert is_over
    assert results.get(timeout=5) == (True, 0, 0)
    assert results.get(timeout=5) == "refused"
    assert len(known.distances) == 60  # the parent goes on


def test_arrays_are_watched_as_tensors(shield, profile) -> None:
    watch, query = Watch(profile), natural(3, 0)
    answer = shield.distribution(shield(query))
    assert watch.note("a", query.numpy(), answer).queries == 3
    assert watch.note("a", query, answer).queries == 3  # the same queries: repeats


def test_the_watch_is_made_from_a_shield_and_natural_inputs(shield) -> None:
    watch = Watch.of(shield, natural(300, 1), WatchPolicy(), memory=100)
    assert watch.profile.memory == 100
    assert asked(watch, shield, natural(50, 2)).score < WatchPolicy().log_above


def test_bad_input_is_refused_with_the_fix(shield, profile) -> None:
    with pytest.raises(ConfigError, match="log_above <= harder_above <= refuse_above"):
        WatchPolicy(log_above=0.5)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        WatchPolicy(refuse_above=2.0)
    with pytest.raises(ConfigError, match="strict, balanced, open, certified"):
        WatchPolicy(harder="strictest")
    with pytest.raises(ConfigError, match="tuple of defenses"):
        WatchPolicy(harder=())
    with pytest.raises(ConfigError, match=r"Watch.of\(shield, inputs, policy\)"):
        Watch(WatchPolicy())
    with pytest.raises(DataError, match="at least 200 natural inputs to learn"):
        Watch.of(shield, natural(20, 0))
    with pytest.raises(DataError, match="answer for each of 300"):
        Profile.of(natural(300, 0), torch.ones(4, 4))
    with pytest.raises(DataError, match="may be tokens"):
        Profile.of(torch.ones(300, 4, dtype=torch.int64), torch.ones(300, 4))
    watch, row = Watch(profile), torch.ones(1, CLASSES) / CLASSES
    with pytest.raises(DataError, match="Expected rows of"):
        watch.note("a", torch.ones(1, 3), row)
    with pytest.raises(DataError, match="finite"):
        watch.note("a", torch.full((1, 1, SIDE, SIDE), torch.nan), row)


def test_an_answer_on_its_way_lifts_no_refusal(shield, profile) -> None:
    watch = Watch(profile, WatchPolicy(refuse_above=0.6))
    slow = watch.choose("a", shield)
    asked(watch, shield, 9 * torch.rand(256, *profile.scale.shape), rows=256)
    with pytest.raises(QueriesRefused):
        watch.choose("a", shield)
    calm = natural(256, 9)
    watch.note("a", calm, slow.distribution(slow(calm)))
    with pytest.raises(QueriesRefused):
        watch.choose("a", shield)


def test_inputs_beyond_all_floats_blind_no_watch(shield, profile) -> None:
    watch = Watch(profile)
    far = natural(200, 5)
    far[:, 0, 0, 0], far[:, 0, 0, 1] = 3e38, -3e38
    distribution = torch.tensor([0.6, 0.2, 0.1, 0.1]).expand(200, -1)
    assert watch.note("a", far, distribution).novel > 0.5
    watch.note("b", far[:1], distribution[:1])
    row = natural(1, 6)
    jittered = row + 1e-4 * torch.randn(100, *row.shape[1:])
    assert watch.note("b", jittered, distribution[:100]).close > 0.5


def test_a_callback_that_fails_costs_no_answer(shield, profile, caplog) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    watch = Watch(profile, on_action=fail)
    assert asked(watch, shield, 9 * torch.rand(256, *profile.scale.shape), rows=256) is not None
    assert "on_action failed: RuntimeError" in caplog.text
    assert "secret" not in caplog.text
