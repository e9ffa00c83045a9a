"""One contract for the whole family: a defense keeps every claim that its class attributes make."""

import itertools
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from torch import Tensor

from shieldnet.defenses import CONVERSIONS, DEFENSES
from shieldnet.defenses.base import Defense
from shieldnet.defenses.clipping import ClipNorm
from shieldnet.defenses.labels import Argmax, Confidence, Label
from shieldnet.defenses.noise import GaussianNoise
from shieldnet.defenses.rounding import Round
from shieldnet.defenses.scale import Log, Softmax, Temperature
from shieldnet.defenses.truncation import TopK
from shieldnet.price import Reach
from shieldnet.randomness import replayed_noise

MEMBERS: tuple[Defense, ...] = (
    ClipNorm(3.0),
    Confidence(4),
    GaussianNoise(2.0),
    Label(),
    Round(0),
    Round(1),
    Round(6),
    Temperature(0.5),
    TopK(1),
    TopK(2),
    Softmax(),
    Log(),
    Argmax(),
)
CASES = [(member, kind) for member in MEMBERS for kind in member.accepts]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def raised(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def logits(count: int, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(count * 1000 + classes)
    width = torch.logspace(-2, 1, max(count, 1))[:count].unsqueeze(1)
    random = torch.randn(count, classes, generator=generator) * width
    extreme = torch.zeros(4, classes)
    extreme[1, -1] = 60.0  # one-hot after softmax
    extreme[2, 0] = extreme[2, -1] = 1.0  # tied winners
    extreme[3] = -50.0  # uniform, far from zero
    return raised((torch.cat([random, extreme]) if count else random).to(dtype))


def rows_for(kind: str, count: int, classes: int, dtype: torch.dtype) -> Tensor:
    rows = logits(count, classes, dtype)
    return rows if kind == "logits" else rows.softmax(-1)


def is_distribution(rows: Tensor) -> bool:
    return bool((rows >= 0).all() and ((rows.sum(-1) - 1).abs() < 1e-4).all())


def names(value: object) -> str:
    return str(value)


def test_the_family_is_complete() -> None:
    assert {type(member) for member in MEMBERS} == {*DEFENSES.values(), *CONVERSIONS}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("defense", "kind"), CASES, ids=names)
class TestContract:
    @pytest.mark.parametrize("classes", [2, 3, 10, 1000])
    @pytest.mark.parametrize("count", [0, 1, 33])
    def test_gives_finite_rows_of_its_kind(
        self, defense: Defense, kind: str, dtype: torch.dtype, device: str, count: int, classes: int
    ) -> None:
        rows = rows_for(kind, count, classes, dtype).to(device)
        given = defense(rows)
        assert given.device == rows.device
        if defense.gives == "labels":
            assert given.shape == rows.shape[:1]
            assert given.dtype == torch.int64
            return
        assert given.shape == rows.shape
        assert given.dtype == rows.dtype
        assert torch.isfinite(given).all()
        if defense.gives == "probabilities":
            assert is_distribution(given)

    def test_leaves_its_input_alone(
        self, defense: Defense, kind: str, dtype: torch.dtype, device: str
    ) -> None:
        rows = rows_for(kind, 33, 10, dtype).to(device)
        before = rows.clone()
        defense(rows)
        assert torch.equal(rows, before)

    def test_a_row_does_not_see_its_batch(
        self, defense: Defense, kind: str, dtype: torch.dtype, device: str
    ) -> None:
        if not defense.deterministic:
            pytest.skip("each call draws its own noise; see the next test")
        rows = rows_for(kind, 33, 10, dtype).to(device)
        together = defense(rows)
        alone = torch.cat([defense(row.unsqueeze(0)) for row in rows])
        assert torch.allclose(together, alone, rtol=1e-6, atol=1e-7)
        shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
        assert torch.allclose(defense(rows[shuffled]), together[shuffled], rtol=1e-6, atol=1e-7)

    def test_what_others_send_does_not_move_a_row(
        self, defense: Defense, kind: str, dtype: torch.dtype, device: str
    ) -> None:
        rows = rows_for(kind, 8, 10, dtype).to(device)
        other = rows.clone()
        other[1:] = other[1:].flip(-1)
        with replayed_noise(3):
            one = defense(rows)
        with replayed_noise(3):
            two = defense(other)
        assert torch.equal(one[0], two[0])

    def test_says_whether_it_is_deterministic(
        self, defense: Defense, kind: str, dtype: torch.dtype, device: str
    ) -> None:
        rows = rows_for(kind, 33, 10, dtype).to(device)
        assert torch.equal(defense(rows), defense(rows)) == defense.deterministic

    def test_keeps_the_winner_where_it_says_so(
        self, defense: Defense, kind: str, dtype: torch.dtype, device: str
    ) -> None:
        for classes in (2, 3, 10, 1000):
            rows = rows_for(kind, 33, classes, dtype).to(device)
            given = defense(rows)
            winners = given if defense.gives == "labels" else given.argmax(-1)
            # Scaling can make ties of neighbors in float, so the winner must be one of the best.
            kept = rows.gather(-1, winners.unsqueeze(-1)) >= rows.amax(-1, keepdim=True) * (
                1 - 1e-6 * rows.amax(-1, keepdim=True).sign()
            )
            assert bool(kept.all()) >= defense.keeps_argmax
            if not defense.keeps_argmax:
                assert not kept.all()


@pytest.mark.parametrize("defense", MEMBERS, ids=names)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_chain_never_costs_more_for_an_upstream_that_says_less(
    defense: Defense, classes: int
) -> None:
    open_price = defense.price(classes)
    known = defense.price(classes, Reach(radius=1.0, named=1))
    assert known.bits <= open_price.bits
    assert known.mu <= open_price.mu


@pytest.mark.parametrize("defense", MEMBERS, ids=names)
def test_what_it_gives_stays_within_its_reach(defense: Defense) -> None:
    rows = rows_for(defense.accepts[0], 200, 10, torch.float32)
    reach = defense.reach(10)
    if reach.radius == float("inf"):
        assert defense.gives != "probabilities" or not defense.deterministic
        return
    given = defense(rows).double()
    center = torch.full((10,), 0.1) if defense.gives == "probabilities" else torch.zeros(10)
    assert ((given - center).norm(dim=-1) <= reach.radius + 1e-6).all()
    if reach.named is not None:
        values = given.sort(-1).values
        assert ((values[:, : 10 - reach.named].diff(dim=-1).abs()) < 1e-6).all()


@pytest.mark.parametrize("defense", MEMBERS, ids=names)
def test_is_a_frozen_value_that_prints_itself(defense: Defense) -> None:
    again = type(defense)(**{one.name: getattr(defense, one.name) for one in fields(defense)})
    assert again == defense
    assert hash(again) == hash(defense)
    assert repr(defense).startswith(type(defense).__name__)
    for one in fields(defense):
        with pytest.raises(FrozenInstanceError):
            setattr(defense, one.name, 0)


@pytest.mark.parametrize("defense", MEMBERS, ids=names)
def test_the_adversary_reads_finite_features_of_every_row(defense: Defense) -> None:
    for classes in (2, 10):
        released = logits(33, classes).softmax(-1)
        for view in defense.adversary_view(released).values():
            assert view.shape[0] == len(released)
            assert torch.isfinite(view).all()


COUNTABLE = [one for one in MEMBERS if one.deterministic and one.price(4).bits < 30]


@pytest.mark.parametrize(("defense", "named"), list(itertools.product(COUNTABLE, (None, 1, 2))))
def test_no_more_answers_occur_than_it_is_priced_for(defense: Defense, named: int | None) -> None:
    """Counts the answers to 60,000 random rows of four classes, sharp and flat, tied and not."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60_000, 4, generator=generator) * torch.logspace(-3, 1, 60_000).unsqueeze(1)
    rows[::7] = rows[::7].round(decimals=1)
    rows = rows.softmax(-1)
    if named is not None:
        rows = TopK(named)(rows)
    answers = len(defense(rows).unique(dim=0))
    assert answers <= 2 ** defense.price(4, Reach(named=named)).bits * (1 + 1e-9)
