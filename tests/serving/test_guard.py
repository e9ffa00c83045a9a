"""Laws of the guard: charged before the answer exists, and never over the budget."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import detectors
import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.core.errors import (
    AnswerError,
    BudgetExceeded,
    ConfigError,
    DataError,
    LedgerUnavailable,
)
from shieldnet.serving import (
    Budget,
    Guard,
    Ledger,
    QueriesRefused,
    Watch,
    WatchPolicy,
    client,
)
from shieldnet.serving.asked import content
from shieldnet.serving.clients import current_client

X = torch.linspace(-1, 1, 24).reshape(6, 4)
BITS = math.log2(12)  # top class of 3 in 4 bins of confidence


class Counting(nn.Module):
    """A linear model that counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.asked = nn.Linear(4, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        return self.linear(x)


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'budget.db'}"


@pytest.fixture
def shield() -> sn.Shield:
    torch.manual_seed(0)
    return sn.harden(Counting(), extent=sn.Extent(3), example=X)


def test_a_guard_answers_as_its_shield_until_the_budget_is_spent(url, shield) -> None:
    with Guard(shield, ledger=url, bits_per_client=10 * BITS + 1e-3) as guard:
        assert torch.equal(guard(X, client="alice"), shield(X))
        asked = shield.model.asked
        with pytest.raises(
            BudgetExceeded,
            match=r"this client does not cover 6 answers .*14\.3408 bits.*never ren",
        ):
            guard(X, client="alice")
        assert shield.model.asked == asked  # no answer was computed
        assert torch.equal(guard(X[:4], client="alice"), shield(X[:4]))
        assert torch.equal(guard(X, client="bob"), shield(X))
        assert guard.left("alice")[0].bits < BITS


def test_a_failed_answer_stays_charged(url, shield) -> None:
    with Guard(shield, ledger=url, queries_per_client=6) as guard:
        with pytest.raises(AnswerError):
            guard(torch.full((4, 4), math.nan), client="alice")
        assert guard.left("alice")[0].queries == 2


def test_no_client_no_answer(url, shield) -> None:
    with Guard(shield, ledger=url, queries_per_client=100) as guard:
        asked = shield.model.asked
        for ask in (
            lambda: guard(X),
            lambda: guard(X, client=""),
            lambda: asyncio.run(guard.answer(X)),
        ):
            with pytest.raises(ConfigError, match="Expected .*client"):
                ask()
        assert shield.model.asked == asked


def test_the_client_of_the_context_is_charged_in_threads_and_tasks(url, shield) -> None:
    with Guard(shield, ledger=url, queries_per_client=100) as guard:

        async def ask(name: str) -> None:
            with client(name):
                await asyncio.gather(guard.answer(X), guard.answer(X[:1]))

        async def both() -> None:
            await asyncio.gather(ask("alice"), ask("bob"))

        asyncio.run(both())
        with client("carol"):
            guard(X)
            with client("dave"):
                guard(X, client="carol")  # what is said beside the call counts
        assert current_client() is None
        left = [guard.left(name)[0].queries for name in ("alice", "bob", "carol", "dave")]
        assert left == [93, 93, 88, 100]


def test_concurrent_calls_get_the_budget_and_no_more(url, shield) -> None:
    with Guard(shield, ledger=url, queries_per_client=50) as guard:

        def ask(_: int) -> int:
            try:
                return len(guard(X[:3], client="alice"))
            except BudgetExceeded:
                return 0

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(ask, range(40))) == 48


def test_without_a_budget_that_can_hold_an_answer_there_is_no_guard(url, shield) -> None:
    with pytest.raises(ConfigError, match="Expected a budget: bits_per_client"):
        Guard(shield, ledger=url)
    with pytest.raises(ConfigError, match=r"costs infinitely many mu.*sn.GaussianNoise"):
        Guard(shield, ledger=url, mu_per_client=1.0)
    with pytest.raises(ConfigError, match="holds not one answer"):
        Guard(shield, ledger=url, bits_per_client=BITS / 2)
    bare = sn.Shield(Counting(), extent=sn.Extent(3))
    with pytest.raises(ConfigError, match=r"infinitely many bits.*sn.harden"):
        Guard(bare, ledger=url, in_all=Budget(bits=1e6))
    with pytest.raises(ConfigError, match="Expected a Shield"):
        Guard(Counting(), ledger=url, queries_per_client=1)
    Guard(bare, ledger=url, queries_per_client=3).close()


def test_the_cost_is_known_before_the_first_answer(url) -> None:
    model = Counting()
    shield = sn.harden(model)
    with pytest.raises(ConfigError, match=r"Expected extent=.*sn.Extent\(classes=10\)"):
        Guard(shield, ledger=url, queries_per_client=9, in_all=Budget(bits=1e6))
    with Guard(shield, ledger=f"{url}2", queries_per_client=6) as guard:  # unknown is infinite
        assert guard.cost.bits == guard.cost.mu == math.inf
        guard(X, client="alice")
        with pytest.raises(BudgetExceeded):
            guard(X, client="alice")
    shield = sn.harden(model)
    with Guard(shield, ledger=url, bits_per_client=100, extent=sn.Extent(3)) as guard:
        assert guard.cost.bits == pytest.approx(BITS)
    shield(X)
    with Guard(shield, ledger=url, bits_per_client=100) as guard:  # as large as those so far
        assert guard.cost.bits == pytest.approx(BITS)
    with pytest.raises(ConfigError, match="the shield declares 3 classes"):
        Guard(
            sn.harden(model, extent=sn.Extent(3)),
            ledger=url,
            bits_per_client=100,
            extent=sn.Extent(30),
        )


def test_a_larger_answer_than_agreed_is_charged_and_refused(url) -> None:
    shield = sn.harden(nn.Identity(), axis=1)
    settings = {"ledger": url, "queries_per_client": 10, "extent": sn.Extent(3, (2, 2))}
    with Guard(shield, **settings) as guard:
        guard(torch.rand(2, 3, 2, 2), client="alice")
        with pytest.raises(AnswerError, match="Expected"):
            guard(torch.rand(2, 3, 4, 4), client="alice")
        assert guard.left("alice")[0].queries == 6


class Multiplying(nn.Module):
    """Answers a thousand rows for each that it is asked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1000, 1)


def test_more_answers_than_were_charged_are_not_released(url) -> None:
    shield = sn.Shield(Multiplying(), sn.Label(), extent=sn.Extent(4))
    with (
        Guard(shield, ledger=url, queries_per_client=10) as guard,
        pytest.raises((AnswerError, ConfigError)),
    ):
        guard(X, client="alice")


def test_a_repeat_under_its_request_id_is_charged_once_unless_noise_is_drawn(url, shield) -> None:
    with Guard(shield, ledger=url, queries_per_client=100) as guard:
        first = guard(X, client="alice", request_id="r1")
        assert torch.equal(first, guard(X.clone(), client="alice", request_id="r1"))
        assert guard.left("alice")[0].queries == 94
        for other in (X[:5], X.double(), X.T.reshape(6, 4), X + 1e-7):
            with pytest.raises(ConfigError, match="a new key .* for a new request"):
                guard(other, client="alice", request_id="r1")
        assert guard.left("alice")[0].queries == 94
    noisy = sn.Shield(
        Counting(), sn.ClipNorm(1.0), sn.GaussianNoise(8.0), extent=sn.Extent(3), example=X
    )
    with Guard(noisy, ledger=Ledger(f"{url}2", per_client=Budget(mu=9))) as guard:
        answers = [guard(X, client="alice", request_id="r1") for _ in range(2)]
        assert not torch.equal(*answers)
        assert guard.left("alice")[0].spent.queries == 12
        guard.ledger.close()


def test_repeats_are_free_where_it_was_agreed(url, shield) -> None:
    settings = {"ledger": url, "queries_per_client": 10, "free_repeats": True}
    with Guard(shield, **settings) as guard:
        for _ in range(5):
            guard(X, client="alice")
            guard(X[3:4], client="alice")
            guard(torch.cat([X, X]), client="alice")
        assert guard.left("alice")[0].queries == 4
        guard(torch.stack([X[0] + 1] * 3), client="alice")  # three times the same new row
        assert guard.left("alice")[0].queries == 3
        guard(X, client="bob")
        assert guard.left("bob")[0].queries == 4
    noisy = sn.Shield(Counting(), sn.ClipNorm(1.0), sn.GaussianNoise(8.0), extent=sn.Extent(3))
    with pytest.raises(ConfigError, match="a new answer"):
        Guard(noisy, **settings)


class Named(nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return ids.float()[:, :3] * (1 if mask is None else mask[:, :3])


@pytest.mark.parametrize(
    ("args", "kwargs", "rows"),
    [
        ((X,), {}, 6),
        ((), {"ids": X, "mask": X}, 6),
        ((X[0:0],), {}, 0),
        ((X[:1],), {"mask": X}, 6),
    ],
)
def test_the_longest_argument_counts(url, args, kwargs, rows: int) -> None:
    shield = sn.harden(Named(), extent=sn.Extent(3))
    with Guard(shield, ledger=url, queries_per_client=100) as guard:
        guard(*args, client="alice", **kwargs)
        assert guard.left("alice")[0].queries == 100 - rows


@pytest.mark.parametrize("nothing", [(), (3,), ({"a": 3},), (None,)])
def test_a_call_whose_rows_cannot_be_counted_is_not_asked(url, shield, nothing) -> None:
    with Guard(shield, ledger=url, queries_per_client=9) as guard:
        with pytest.raises(DataError, match="what it costs is not known"):
            guard(*nothing, client="alice")
        assert guard.left("alice")[0].queries == 9


def test_estimators_answer_behind_a_guard(url) -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.linear_model import LogisticRegression

    table = pandas.DataFrame(X.numpy(), columns=list("abcd"))
    estimator = LogisticRegression().fit(table, [0, 1, 2] * 2)
    shield = sn.harden(estimator)
    expected = shield(table)
    with Guard(shield, ledger=url, queries_per_client=10) as guard:
        assert (guard(table, client="alice", request_id="r") == expected).all()
        guard(table.copy(), client="alice", request_id="r")
        assert guard.left("alice")[0].queries == 4
        with pytest.raises(ConfigError, match="a new key"):
            guard(table + 1, client="alice", request_id="r")


def test_a_ledger_of_ones_own_keeps_its_budgets(url, shield) -> None:
    with Ledger(url, per_client=Budget(queries=10)) as ledger:
        guard = Guard(shield, ledger=ledger)
        guard(X, client="alice")
        guard.close()
        assert ledger.left("alice")[0].queries == 4  # still open: it is not the guard's
        with pytest.raises(ConfigError, match="Expected the budgets in the ledger"):
            Guard(shield, ledger=ledger, queries_per_client=4)
    with pytest.raises(LedgerUnavailable, match="was closed"):
        guard(X, client="alice")


def test_a_guard_prints_what_it_guards(url, shield) -> None:
    with Guard(shield, ledger=url, bits_per_client=2000, window="day") as guard:
        assert repr(guard).endswith("each client: 2000 bits per day)")
        assert str(guard.left("alice")[0]) == "2000 bits per day"


def test_a_watch_answers_by_a_harder_shield_and_then_refuses(url, shield) -> None:
    generator = torch.Generator().manual_seed(0)
    natural = torch.randn(400, 4, generator=generator)
    policy = WatchPolicy(log_above=0.1, harder_above=0.2, refuse_above=0.9, harder="strict")
    shield = sn.harden(shield.model, extent=sn.Extent(3), example=X)
    watch = Watch.of(shield, natural, policy)
    with Guard(shield, ledger=url, queries_per_client=1000, watch=watch) as guard:
        for rows in natural[:100].split(20):
            assert torch.equal(guard(rows, client="bob"), shield(rows))
        guard(100 + natural[:20], client="alice")
        strict = sn.harden(shield.model, "strict")
        assert torch.equal(guard(natural[:5], client="alice"), strict(natural[:5]))
        guard(100 + natural[100:300], client="alice")
        left = guard.left("alice")
        with pytest.raises(QueriesRefused, match="Nothing was charged"):
            guard(natural[:5], client="alice")
        assert guard.left("alice") == left
        guard(natural[:5], client="bob")


def test_a_request_id_buys_no_answer_of_another_model_or_shield(url, shield) -> None:
    with Ledger(url, per_client=Budget(queries=100)) as ledger:
        Guard(shield, ledger=ledger)(X, client="alice", request_id="r1")
        torch.manual_seed(1)
        others = (
            sn.harden(Counting(), extent=sn.Extent(3), example=X),
            sn.Shield(shield.model, sn.Confidence(4), sn.Label(), extent=sn.Extent(3), example=X),
        )
        for other in others:
            with pytest.raises(ConfigError, match="a new key"):
                Guard(other, ledger=ledger)(X, client="alice", request_id="r1")
        Guard(shield, ledger=ledger).charge("alice", 2, key="r2", content=b"x")
        assert Guard(shield, ledger=ledger).charge("alice", 2, key="r2", content=b"x").repeated
        for other in others:
            with pytest.raises(ConfigError, match="a new key"):
                Guard(other, ledger=ledger).charge("alice", 2, key="r2", content=b"x")


class Sidelong(nn.Module):
    """Answers each row, and a thousand rows of something else."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x, "extra": torch.zeros(1000, 1)}


def test_no_field_has_more_rows_than_were_charged(url) -> None:
    extent = sn.Extent(4, fields={"extra": sn.Extent(1)})
    shield = sn.Shield(
        Sidelong(), sn.Label(), outputs={"logits": "logits"}, also={"extra": ()}, extent=extent
    )
    with Guard(shield, ledger=url, queries_per_client=100) as guard, pytest.raises(AnswerError):
        guard(X[:0], client="alice")


def test_content_tells_apart_what_a_model_may_tell_apart() -> None:
    pandas = pytest.importorskip("pandas")
    import numpy as np

    frame = pandas.DataFrame
    groups = (
        (frame({"id": [2**53], "x": [0.5]}), frame({"id": [2**53 + 1], "x": [0.5]})),
        (frame({"x": [1.0]}), frame({"x": [1.0]}, index=[5]), frame({"x": [1.0]}, dtype="float32")),
        (frame({1: [1]}), frame({"1": [1]}), frame({1: np.array([1], dtype="int8")})),
        (
            frame({"x": pandas.Categorical(["a"], ["a", "b"])}),
            frame({"x": pandas.Categorical(["a"], ["b", "a"])}),
        ),
        (
            np.zeros(1, dtype=[("a", "f4"), ("b", "i4")]),
            np.zeros(1, dtype=[("b", "i4"), ("a", "f4")]),
        ),
        (torch.zeros(2, 2), torch.zeros(2, 2).to_sparse(), torch.zeros(4), -torch.zeros(2, 2)),
        (1, 1.0, True, "1"),
    )
    for group in groups:
        hashes = {content((value,), {}) for value in group}
        assert len(hashes) == len(group)
    same = frame({"x": [1.0], "when": [pandas.Timestamp("2026-01-01")]})
    assert content((same,), {}) == content((same.copy(),), {})
    with pytest.raises(DataError, match="Leave out request_id"):
        content((np.ma.array([1, 2], mask=[0, 1]),), {})


def test_what_a_watch_cannot_look_at_is_refused_before_it_is_charged(url) -> None:
    natural = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    shield = sn.harden(Named(), extent=sn.Extent(3), example=natural[:8])
    with Guard(
        shield, ledger=url, queries_per_client=1000, watch=Watch.of(shield, natural)
    ) as guard:
        guard(natural[:10], client="alice")
        for args, words in (
            (([[0.0] * 4],), "a tensor or an array"),
            ((natural.repeat(9, 1),), "at most 256 rows"),
            ((natural[:2].long(),), "int64"),
            ((natural[:2] * math.nan,), "NaN"),
        ):
            with pytest.raises((ConfigError, DataError), match=words):
                guard(*args, client="alice")
        assert guard.left("alice")[0].queries == 990
        # The model's first input is watched, not the caller's.
        guard(mask=natural[:100].abs(), ids=100 + natural[:100], client="bob")
        assert guard.watch.choose("alice", shield) is shield
        with pytest.raises(QueriesRefused):
            guard.watch.choose("bob", shield)


def test_an_answer_of_the_harder_shield_is_no_repeat_of_another(url) -> None:
    natural = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    shield = sn.harden(Counting(), extent=sn.Extent(3), example=X)
    policy = WatchPolicy(0.1, 0.2, 0.95, harder=(sn.RandomizedResponse(1.0),))
    watch = Watch.of(shield, natural, policy)
    settings = {"queries_per_client": 1000, "free_repeats": True, "watch": watch}
    with Guard(shield, ledger=url, **settings) as guard:
        rows = natural[:5]
        guard(rows, client="alice")
        guard(rows, client="alice", request_id="r1")
        guard(100 + natural[:20], client="alice")
        assert watch.choose("alice", shield) is not shield
        before = guard.left("alice")[0].queries
        for count in (1, 2):  # the harder shield draws: each of its answers is a new one
            guard(rows, client="alice", request_id="r1")
            assert guard.left("alice")[0].queries == before - 5 * count


def test_what_is_left_prints_in_words(url, shield) -> None:
    with Guard(shield, ledger=url, bits_per_client=10) as guard:
        guard(X[:1], client="alice")
        assert str(guard.left("alice")) == "(<6.41504 bits left of 10 bits in total>,)"


def test_what_a_guard_lacks_is_at_its_shield(url, shield) -> None:
    with Guard(shield, ledger=url, bits_per_client=10) as guard:
        with pytest.raises(AttributeError, match="A Guard has no device: .* is guard.shield"):
            _ = guard.device
        assert not hasattr(guard, "device")
        assert not hasattr(guard, "_device")


def detector() -> sn.Shield:
    steps = (sn.ClipRange(0.0, 16.0), sn.RoundTo(2.0))
    return sn.harden(
        detectors.Finds(),
        outputs={"scores": "binary_probabilities", "boxes": "values"},
        also={"boxes": steps, "labels": ()},
    )


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_detector_is_charged_by_the_image_and_its_bits_are_infinite(url, asked_before) -> None:
    images, _ = detectors.pictures(5, 0)
    shield = detector()
    wanted = "Expected extent="
    if asked_before:
        shield(images)
        wanted = "nothing bounds it: use a budget of queries"
    with pytest.raises(ConfigError, match=wanted):
        Guard(shield, ledger=url, bits_per_client=1e6)
    with Guard(shield, ledger=url, queries_per_client=10) as guard:
        assert guard.cost.bits == guard.cost.mu == math.inf
        assert len(guard(images, client="alice")) == 5
        wide = [torch.rand(1, 16, 16) for _ in range(4)]  # as torchvision's take them
        assert len(guard(wide, client="alice")) == 4
        assert guard.left("alice")[0].queries == 1
        with pytest.raises(BudgetExceeded):
            guard(images, client="alice")


class Lists(nn.Module):
    """Takes a list of tensors, with a row along the first axis of each."""

    def forward(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([part.mean(1)[:, :3] for part in parts])


def test_a_list_of_no_detector_is_charged_by_its_rows_from_the_first_call_on(url) -> None:
    shield = sn.harden(Lists().eval(), outputs="logits")
    with Guard(shield, ledger=url, queries_per_client=20) as guard:
        for left in (14, 8):
            assert len(guard([torch.randn(6, 7, 4)], client="alice")) == 6
            assert guard.left("alice")[0].queries == left
        with pytest.raises(BudgetExceeded):
            guard([torch.randn(5000, 7, 4)], client="alice")


def test_what_a_detector_has_no_use_for_is_refused_before_an_answer(url) -> None:
    shield = detector()
    shield(detectors.pictures(2, 0)[0])
    natural = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    watch = Watch.of(sn.harden(Counting(), extent=sn.Extent(3), example=X), natural)
    with pytest.raises(ConfigError, match="Expected no extent= for a list of dicts"):
        Guard(shield, ledger=url, queries_per_client=10, extent=sn.Extent(4))
    with pytest.raises(ConfigError, match="reads no list of dicts"):
        Guard(shield, ledger=url, queries_per_client=10, watch=watch)
