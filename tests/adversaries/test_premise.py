"""A start that knows the records: steps may be private, and the weights tell everything."""

import pytest
import torch
from torch import nn

import shieldnet as sn

ROWS, FEATURES, CLASSES = 80, 60, 4


@pytest.fixture(scope="module")
def learned():
    """Returns records with random labels, others like them, and a model that knows the first."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * ROWS, FEATURES, generator=generator)
    labels = torch.randint(CLASSES, (2 * ROWS,), generator=generator)
    members = inputs[:ROWS], labels[:ROWS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = nn.Linear(FEATURES, CLASSES)
    model = sn.finetune(fresh, members, epochs=60, learning_rate=0.5, seed=0, progress=False).model
    return fresh, model, members, (inputs[ROWS:], labels[ROWS:])


def tuned(model, members, **more):
    settings = {"epochs": 1, "learning_rate": 1e-3, "progress": False, **more}
    return sn.finetune(model, members, sn.DPSGD(epsilon=0.1, delta=1e-4), **settings)


def membership(model, members, others) -> float:
    """Plays the adversary to the end: the loss alone, and the area under its curve."""
    with torch.no_grad():
        ours, theirs = (
            model(x).log_softmax(-1).gather(1, y[:, None])[:, 0] for x, y in (members, others)
        )
    return float((ours[:, None] > theirs).double().mean())


def audited(model, members, others, finetuned):
    return sn.audit(
        sn.harden(model, "open"),
        members=members,
        nonmembers=others,
        finetuned=finetuned,
        tier="quick",
        shadows=0,
        progress=False,
    )


def test_nothing_false_is_said_of_weights_that_knew_the_records_before(learned) -> None:
    _, model, members, others = learned
    private = tuned(model, members)
    guarantee = private.guarantee
    assert membership(private.model, members, others) > guarantee.auc() + 0.2  # of the weights
    assert guarantee.scope == "steps"
    assert guarantee.words.endswith("of these steps")
    page = str(private)
    assert "Guarantee of these 1 steps" in page
    assert "Not of the weights" in page
    assert "Guarantee for each of" not in page


def test_the_audit_puts_no_bound_beside_weights_of_which_none_is_proven(learned) -> None:
    _, model, members, others = learned
    private = tuned(model, members)
    report = audited(private.model, members, others, private)
    assert report["bare"]["membership.auc"].ceiling is None
    assert not any(one.crosses_proof for one in report["bare"].findings)
    assert "of these steps" in str(report)
    with pytest.raises(sn.errors.PolicyFailed, match=r"steps only.*start='public'"):
        report.require(sn.Policy({"max_epsilon": 8.0}))


def test_a_start_that_is_called_public_and_knows_the_records_is_refused(learned) -> None:
    _, model, members, others = learned
    with pytest.raises(sn.errors.ConfigError, match=r"start='public' is not true.*p = "):
        tuned(model, members, start="public", heldout=others)


def test_heldout_rows_that_tell_nothing_are_no_evidence(learned) -> None:
    """The records themselves as heldout rows, or a handful of others, were called no evidence."""
    fresh, model, members, others = learned
    with pytest.raises(sn.errors.DataError, match="of the heldout rows are also training records"):
        tuned(model, members, start="public", heldout=members)
    few = others[0][:3], others[1][:3]
    assert "Too few rows (3) to tell" in tuned(fresh, members, start="public", heldout=few).start


def test_without_a_claim_it_is_told_what_the_start_knows(learned) -> None:
    _, model, members, others = learned
    assert "The start knows the records" in str(tuned(model, members, heldout=others))


def test_a_lie_is_caught_by_the_audit(learned) -> None:
    _, model, members, others = learned
    private = tuned(model, members, start="public")
    assert "(start='public')" in str(private)  # it is printed as what it is: assumed
    report = audited(private.model, members, others, private)
    with pytest.raises(
        sn.errors.PolicyFailed, match="the defense, the accountant or the attack is wrong"
    ):
        report.require(sn.Policy({"max_epsilon": 8.0}))


def test_a_fresh_start_passes_and_is_bounded(learned) -> None:
    fresh, _, members, others = learned
    private = tuned(fresh, members, start="public", heldout=others)
    assert "whether the start knows the records" in private.start
    assert private.guarantee.words == f"epsilon 0.10 at delta {1e-4:g}"
    assert membership(private.model, members, others) < private.guarantee.auc() + 0.1
    report = audited(private.model, members, others, private)
    assert report["bare"]["membership.auc"].ceiling == private.guarantee.auc()
    assert "assumed" in str(report)


def test_two_trainings_in_a_row_cost_both(learned) -> None:
    fresh, _, members, _ = learned
    first = tuned(fresh, members, start="public")
    second = tuned(first.model, members, start=first.guarantee)
    mu = (first.guarantee.mu**2 + second.guarantee.before[0].mu ** 2) ** 0.5
    assert second.guarantee.mu == pytest.approx(mu)
    assert second.guarantee.epsilon > first.guarantee.epsilon
    assert (second.guarantee.scope, second.guarantee.start) == ("weights", first.guarantee.weights)
    assert "composed with 1 earlier training" in str(second)
    again = sn.Guarantee.read(second.guarantee.document())
    assert again == second.guarantee


def test_a_guarantee_of_another_start_is_refused(learned) -> None:
    fresh, model, members, _ = learned
    first = tuned(fresh, members, start="public")
    with pytest.raises(sn.errors.ConfigError, match="belongs to another model"):
        tuned(model, members, start=first.guarantee)


def test_steps_upon_steps_are_never_of_the_weights(learned) -> None:
    _, model, members, _ = learned
    first = tuned(model, members)
    second = tuned(first.model, members, start=first.guarantee)
    assert second.guarantee.scope == "steps"


def test_draws_that_exceed_delta_by_themselves_are_refused(learned) -> None:
    """What is drawn is off by 2^-215 at most, which counts e^epsilon times."""
    fresh, _, members, _ = learned
    with pytest.raises(sn.errors.ConfigError, match="delta 0.0001 cannot be met"):
        sn.finetune(
            fresh, members, sn.DPSGD(noise_multiplier=0.05, delta=1e-4), epochs=9, progress=False
        )


@pytest.mark.parametrize("start", ["Public", "private", True, 3])
def test_a_start_that_says_nothing_is_refused(learned, start) -> None:
    fresh, _, members, _ = learned
    with pytest.raises(sn.errors.ConfigError, match="Expected start='public'"):
        tuned(fresh, members, start=start)


def test_a_start_is_stated_for_a_guarantee_alone(learned) -> None:
    fresh, _, members, _ = learned
    with pytest.raises(sn.errors.ConfigError, match="concern the guarantee of DPSGD"):
        sn.finetune(fresh, members, start="public")
