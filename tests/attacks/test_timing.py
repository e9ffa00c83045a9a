"""A server whose time depends on the class is found out; one in steps, or an even one, is not."""

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, Timing
from shieldnet.attacks.timing import balanced, halves, readings, told
from shieldnet.core.errors import ConfigError, DataError
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable
from shieldnet.serving.latency import until_next_sync

CLASSES = 4


class Server:
    """Answers after a time of its own clock: a base, what the class adds, noise, a rare stall."""

    def __init__(self, *, by_class: float = 0.0, step: float = 0.0) -> None:
        self.by_class, self.step = by_class, step
        self.now, self.asked = 0.0, 0
        self.draw = Random(5)  # noqa: S311 - simulated noise
        self.added = lambda row: 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, row: Tensor) -> None:
        assert len(row) == 1
        self.asked += 1
        start = self.now
        numbers = row[0].tolist()
        noise = 1e-4 * self.draw.random() + 0.02 * (self.draw.random() < 0.02)
        extra = self.by_class * numbers.index(max(numbers)) + self.added(tuple(numbers))
        self.now += 1e-3 + noise + extra
        if self.step:
            until_next_sync(start, self.step, clock=self.clock, sleep=self.sleep)


def linear(classes: int = CLASSES) -> nn.Module:
    model = nn.Linear(classes, classes, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(classes))
    return model.eval()


def game(seed: int = 0, rows: int = 240, classes: int = CLASSES) -> Game:
    generator = torch.Generator().manual_seed(seed)
    sets = [
        Examples(name, torch.randn(rows, classes, generator=generator))
        for name in ("members", "nonmembers")
    ]
    return Game(sn.harden(linear(classes)), *sets, seed=seed)


def found_by(server: Server, played: Game, **settings) -> dict[str, Finding]:
    attack = Timing(ask=server.ask, clock=server.clock, **settings)
    return {finding.name: finding for finding in attack(played).findings}


def test_times_that_depend_on_the_class_tell_it() -> None:
    played = game()
    found = found_by(Server(by_class=1e-4), played)
    assert found["timing.class"].low > 0.5  # of at most 0.75 above the commonest guess
    assert found["timing.class"].samples == 100
    assert found["timing.class"].baseline == 0
    assert "sees response times of 9 queries per input" in str(found["timing.class"].threat)
    assert "commonest guess is right 0.25" in found["timing.class"].note
    assert found["timing.membership"].low == 0


@pytest.mark.parametrize("classes", [4, 10, 40])
def test_one_class_of_many_that_shows_is_found_however_many_there_are(classes) -> None:
    played = game(rows=20 * classes, classes=classes)
    server = Server()
    server.added = lambda row: 5e-4 * (row.index(max(row)) == 2)  # an early exit, say
    found = found_by(server, played, rows=10 * classes)
    assert found["timing.worst_class"].value > 0.9
    assert found["timing.worst_class"].low > 0.3
    assert found["timing.worst_class"].note == "class 2"
    assert found["timing.class"].value < 1.5 / classes
    assert found["timing.worst_class"].samples == 5


def test_even_times_tell_no_class_of_ten() -> None:
    found = [
        found_by(Server(), game(seed, rows=1000, classes=10), rows=800, repeats=1)
        for seed in range(4)
    ]
    worst = [one["timing.worst_class"] for one in found]
    assert [finding.samples for finding in worst] == [40] * 4
    assert [finding.low for finding in worst] == [0] * 4
    assert sum(finding.high < 0.1 for finding in worst) >= 3


def test_times_that_depend_on_membership_tell_it() -> None:
    played = game()
    server = Server()
    members = {tuple(row.tolist()) for row in played.members.inputs}
    server.added = lambda row: 2e-4 * (row in members)  # a cache, say
    found = found_by(server, played)
    assert found["timing.membership"].low > 0.4
    assert found["timing.class"].low == 0


def test_even_times_tell_nothing() -> None:
    surely = 0
    for seed in range(8):
        found = found_by(Server(), game(seed), repeats=5, rows=120)
        assert all(finding.value < 0.2 for finding in found.values())
        surely += sum(finding.low > 0 for finding in found.values())
    assert surely <= 1


def test_times_in_steps_tell_nothing_although_what_is_below_them_leaks() -> None:
    found = found_by(Server(by_class=1e-4, step=0.05), game())
    assert all(finding.low == 0 for finding in found.values())
    assert found["timing.class"].value < 0.05


def test_steps_that_are_too_short_still_tell() -> None:
    found = found_by(Server(by_class=5e-4, step=5e-4), game())
    assert found["timing.class"].low > 0.2


def test_every_input_is_asked_as_often_and_in_no_order() -> None:
    server, asked = Server(), []
    attack = Timing(ask=lambda row: asked.append(int(row)), clock=server.clock, repeats=3)
    times = attack.timed(torch.arange(50).unsqueeze(1), torch.Generator().manual_seed(0))
    assert times.shape == (50, 3)
    measured = asked[-150:]
    assert sorted(measured) == sorted([*range(50)] * 3)
    assert measured[:50] != [*range(50)]


def test_what_is_learned_from_is_not_what_is_scored() -> None:
    truth = torch.tensor([3, 3, 1, 3, 1, 1, 3, 1])
    is_fit = halves(truth)
    assert is_fit.tolist() == [True, False, True, True, False, True, False, False]


def test_as_many_inputs_of_each_class_are_asked() -> None:
    truth = torch.cat([torch.zeros(100), torch.ones(30), torch.full((4,), 2)]).long()
    chosen = balanced(truth, 200, torch.Generator().manual_seed(0))
    assert truth[chosen].unique(return_counts=True)[1].tolist() == [30, 30]
    assert len(chosen.unique()) == 60
    assert len(balanced(truth[:5], 200, torch.Generator())) == 0


def test_nearest_neighbors_and_readings_are_what_they_say() -> None:
    times = torch.tensor([[1.0, 2.0, 8.0], [4.0, 1.0, 16.0]], dtype=torch.float64)
    read = readings(times)
    assert read["the least time"].flatten().tolist() == [0, 0]
    assert read["the median"].exp().flatten().tolist() == pytest.approx([2, 4])
    known = torch.tensor([[0.0], [0.1], [5.0]])
    assert told(torch.tensor([[4.0], [0.0]]), known, torch.tensor([0, 0, 1]), 1).tolist() == [1, 0]
    assert told(torch.tensor([[4.0]]), known, torch.tensor([0, 0, 1]), 15).tolist() == [0]


def test_where_it_does_not_fit_it_says_why() -> None:
    played, server = game(), Server()
    with pytest.raises(NotApplicable, match="pass Timing.ask="):
        Timing()(played)
    bare = replace(played, shield=played.shield.bare())
    with pytest.raises(NotApplicable, match="undefended model is not what is served"):
        found_by(server, bare)
    with pytest.raises(NotApplicable, match="another shield is served"):
        found_by(server, bare, shield=played.shield)
    assert found_by(server, bare, shield=bare.shield, repeats=1)
    few = Examples("nonmembers", played.nonmembers.inputs[:12])
    outcome = Timing(ask=server.ask, clock=server.clock, repeats=1)(replace(played, nonmembers=few))
    assert outcome.untested == ("timing.class: needs at least 10 inputs of each of two classes",)
    assert [finding.name for finding in outcome.findings] == ["timing.membership"]
    with pytest.raises(ConfigError, match="a function that sends one input, got str"):
        Timing(ask="http://localhost")
    with pytest.raises(ConfigError, match="repeats >= 1"):
        Timing(repeats=0)
    backwards = iter(range(10**6, 0, -1))
    with pytest.raises(DataError, match="never runs backwards"):
        Timing(ask=server.ask, clock=lambda: float(next(backwards)))(played)


def test_values_have_no_class_but_may_tell_membership() -> None:
    played = game()
    values = replace(played, shield=sn.Shield(linear(), sn.RoundTo(0.5), outputs="values"))
    assert list(found_by(Server(), values, repeats=1)) == ["timing.membership"]


def test_an_audit_times_the_served_model_only_where_it_is_given_one(tmp_path) -> None:
    played, server = game(rows=60), Server(by_class=1e-3)
    sets = {
        "members": played.members.inputs,
        "nonmembers": played.nonmembers.inputs,
        "tier": sn.Tier("none", ()),
        "cache": tmp_path,
        "engine": "inline",
    }
    untimed = sn.audit(played.shield, **sets)
    assert any("by the attack Timing" in line for line in untimed.subjects[-1].untested)
    attack = Timing(ask=server.ask, clock=server.clock, repeats=3)
    bare, timed = sn.audit(played.shield, **sets, attacks=(attack,)).subjects
    assert "side channels other than response times" in timed.untested
    assert not any("by the attack Timing" in line for line in timed.untested)
    found = {finding.name for finding in timed.findings}
    assert {"timing.class", "timing.membership"} <= found
    assert any(line.startswith("timing: the undefended model") for line in bare.untested)
    asked = server.asked
    report = sn.audit(played.shield, **sets, attacks=(attack,))
    assert server.asked == 2 * asked  # times are measured again, never read from a cache
    assert not report.passes(sn.Policy({"max_timing_advantage": 0.1}))
    with pytest.raises(ConfigError, match="attacks such as Timing"):
        sn.audit(played.shield, **sets, attacks=attack)
