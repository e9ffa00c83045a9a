"""How long an audit takes is told before it starts, and of shadows after the first."""

from dataclasses import replace

import pytest
from detectors import Finds, hardened, sets
from torch import Tensor

import shieldnet as sn
from shieldnet.attacks import MapProbing, PromptInversion, Search
from shieldnet.auditing.estimate import Load, estimate_s, tell_when_first_is_done, waiting
from shieldnet.auditing.plan import TIERS, Tier


def test_busy_cores_take_as_many_times_longer() -> None:
    load = Load(rows=1000, owned=250, targets=400, features=10, classes=2, ask_s=0.0)
    free, busy = (
        estimate_s(TIERS["quick"], load, shields=[False], waiting=factor) for factor in (1.0, 4.0)
    )
    assert busy == 4 * free
    assert 1 <= waiting() <= 20


def test_the_time_of_the_other_shadows_is_told_once_after_the_first() -> None:
    calls: list[int] = []
    told: list[str] = []
    done = tell_when_first_is_done(8, 2, lambda: calls.append(1), told.append)
    for _ in range(8):
        done()
    assert len(calls) == 8
    assert told == ["shadows by train: about 1 s more for the other 7"]


def test_candidates_of_a_search_are_counted_where_the_search_runs() -> None:
    searching = Tier("searching", (PromptInversion(tokens=2, texts=4), MapProbing(queries=8)))
    load = Load(rows=1000, owned=250, targets=400, features=10, classes=2, ask_s=100.0)
    nothing = Tier("nothing", ())
    rows, texts, maps = (
        estimate_s(searching, replace(load, form=form), shields=[False])
        - estimate_s(nothing, replace(load, form=form), shields=[False])
        for form in ("rows", "texts", "maps")
    )
    assert rows == 0
    assert texts == pytest.approx(0.1 * (20 + 2) * 3 * 24 * 2)
    assert maps == pytest.approx(0.1 * (40 * 3 + 100) * 8)


def test_a_map_is_asked_about_a_few_times_and_masked_never() -> None:
    load = Load(rows=1000, owned=250, targets=400, features=10, classes=2, ask_s=100.0)
    rows, maps = (
        estimate_s(TIERS["quick"], replace(load, form=form), shields=[False, False])
        for form in ("rows", "maps")
    )
    assert maps < 2 * 100.0 * 5 < rows


def test_candidates_are_counted_as_far_as_the_sets_go() -> None:
    for attack, form in ((MapProbing(), "maps"), (Search(), "rows"), (PromptInversion(), "texts")):
        most = attack.candidates_asked(form, 1000, 1000)
        assert 0 < attack.candidates_asked(form, 60, 60) < most
        assert attack.candidates_asked(form, 0, 1000) == 0  # without auxiliary data
        assert attack.candidates_asked(form, 1000, 0) == 0


@pytest.mark.parametrize("pulls", [(0.1,), (1e-3, 1e-2, 1e-1)])
def test_a_search_of_maps_asks_about_as_often_as_is_announced(pulls) -> None:
    class Counts(Finds):
        asked = 0

        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            self.asked += len(images)
            return super().forward(images)

    probing = MapProbing(queries=16, pulls=pulls)
    counts = []
    for attacks in ((), (probing,)):
        data = {name: (images[:50], own[:50]) for name, (images, own) in sets().items()}
        model = Counts()
        sn.audit(hardened(model), **data, tier=Tier("one", attacks), engine="inline")
        counts.append(model.asked)
    announced = 2 * probing.candidates_asked("maps", 50, 50)  # of two shields
    assert announced / 2 < counts[1] - counts[0] < 2 * announced
