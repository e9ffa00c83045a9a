"""One contract for the whole family: a defense keeps every claim that its class attributes make."""

import itertools
import math
from dataclasses import FrozenInstanceError, dataclass, fields

import pytest
import torch
from torch import Tensor

from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.core.randomness import replayed_noise
from shieldnet.defenses import CONVERSIONS, DEFENSES, Chain
from shieldnet.defenses.base import Defense
from shieldnet.defenses.clipping import ClipNorm
from shieldnet.defenses.coarsening import Coarsen
from shieldnet.defenses.heuristics import BASELINES
from shieldnet.defenses.named import dense
from shieldnet.defenses.noise import GaussianNoise
from shieldnet.defenses.randomized_response import RandomizedResponse
from shieldnet.defenses.rounding import RoundTo
from shieldnet.defenses.signs import Sign
from shieldnet.defenses.top_k import TopK
from shieldnet.outputs.layout import Kind
from shieldnet.privacy.cost import Reach

MEMBERS = tuple(
    example
    for kind in (*DEFENSES.values(), *CONVERSIONS, *BASELINES.values())
    for example in kind.examples()
)
CASES = [(member, kind) for member in MEMBERS for kind in member.accepts]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
SCORES = ("logits", "values", "embeddings")


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


def rows_for(
    defense: Defense, kind: str, count: int, classes: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns rows of a kind; with positions where the defense needs some."""
    rows = logits(count, classes, dtype)
    rows = rows if kind in SCORES else rows.softmax(-1)
    if isinstance(defense, Coarsen):
        return torch.stack([rows, rows.roll(1, -1), rows.flip(-1)], 1)
    return rows


def is_distribution(rows: Tensor) -> bool:
    return bool((rows >= 0).all() and ((rows.sum(-1) - 1).abs() < 1e-4).all())


def names(value: object) -> str:
    return str(value)


def test_every_defense_shows_examples_of_itself() -> None:
    for kind in (*DEFENSES.values(), *CONVERSIONS, *BASELINES.values()):
        assert kind.examples()
        assert {type(example) for example in kind.examples()} == {kind}


def test_baselines_are_in_no_preset() -> None:
    from shieldnet.shield.presets import PRESETS

    assert not set(BASELINES.values()) & {type(one) for chain in PRESETS.values() for one in chain}


class Contract:
    """What every defense is held to. Planted defects show below that each line can turn red."""

    def gives_finite_rows_of_its_kind(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        for count, classes in itertools.product((0, 1, 33), (2, 3, 10, 1000)):
            rows = rows_for(defense, kind, count, classes, dtype).to(device)
            given = defense(rows)
            given_kind = defense.given(kind)
            assert given.device == rows.device
            if given_kind == "labels":
                assert given.shape == rows.shape[:-1]
                assert given.dtype == torch.int64
                continue
            assert given.shape == rows.shape
            assert given.dtype == (torch.int64 if given_kind == "integers" else rows.dtype)
            assert torch.isfinite(given).all()
            if given_kind == "probabilities":
                assert is_distribution(given)

    def leaves_its_input_alone(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        rows = rows_for(defense, kind, 33, 10, dtype).to(device)
        before = rows.clone()
        defense(rows)
        dense(defense.compact(rows))
        assert torch.equal(rows, before)

    def a_row_does_not_see_its_batch(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        if not defense.deterministic:
            return  # each call draws its own noise; see the next check
        rows = rows_for(defense, kind, 33, 10, dtype).to(device)
        together = defense(rows)
        alone = torch.cat([defense(row.unsqueeze(0)) for row in rows])
        assert torch.allclose(together, alone, rtol=1e-6, atol=1e-7)
        shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
        assert torch.allclose(defense(rows[shuffled]), together[shuffled], rtol=1e-6, atol=1e-7)

    def what_others_send_does_not_move_a_row(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        rows = rows_for(defense, kind, 8, 10, dtype).to(device)
        other = rows.clone()
        other[1:] = other[1:].flip(0, -1)
        with replayed_noise(3):
            one = defense(rows)
        with replayed_noise(3):
            two = defense(other)
        assert torch.equal(one[0], two[0])

    def says_whether_it_is_deterministic(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        rows = rows_for(defense, kind, 33, 10, dtype).to(device)
        assert torch.equal(defense(rows), defense(rows)) == defense.deterministic

    def keeps_the_winner_where_it_says_so(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        ever_lost = False
        for classes in (2, 3, 10, 1000):
            rows = rows_for(defense, kind, 33, classes, dtype).to(device)
            given = defense(rows)
            winners = given if defense.given(kind) == "labels" else given.argmax(-1)
            # Scaling can make ties of neighbors in float, so the winner must be one of the best.
            best = rows.amax(-1, keepdim=True)
            kept = rows.gather(-1, winners.unsqueeze(-1)) >= best * (1 - 1e-6 * best.sign())
            assert bool(kept.all()) or not defense.keeps_argmax
            ever_lost |= not kept.all()
        assert ever_lost != defense.keeps_argmax

    def what_is_compact_says_the_same(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        rows = rows_for(defense, kind, 33, 10, dtype).to(device)
        with replayed_noise(3):
            one = defense(rows)
        with replayed_noise(3):
            two = dense(defense.compact(rows))
        assert torch.equal(one, two)

    def positions_are_rows(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        if isinstance(defense, Coarsen):
            return  # it is there to mix the positions of one row
        rows = rows_for(defense, kind, 32, 10, dtype).to(device)
        with replayed_noise(3):
            one = defense(rows)
        with replayed_noise(3):
            two = defense(rows.reshape(9, 4, 10))
        assert torch.allclose(two.reshape(one.shape), one, rtol=1e-6, atol=1e-7)

    def captum_can_look_through_it(
        self, defense: Defense, kind: Kind, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        for count in (5, 2000):
            rows = rows_for(defense, kind, count, 10, dtype).to(device).requires_grad_()
            given = dense(defense.compact(rows))
            if given.requires_grad:
                given.sum().backward()
                assert rows.grad is not None


CHECKS = [name for name in vars(Contract) if not name.startswith("_")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("defense", "kind"), CASES, ids=names)
def test_every_defense_keeps_the_contract(
    defense: Defense, kind: Kind, check: str, dtype: torch.dtype, device: str
) -> None:
    getattr(Contract(), check)(defense, kind, dtype, device)


@dataclass(frozen=True)
class Planted(Defense):
    """A defense with a defect of each sort; the contract must see it."""

    defect: str
    accepts = ("probabilities",)
    gives = "probabilities"

    def __call__(self, answers: Tensor) -> Tensor:
        if self.defect == "writes in place":
            return answers.clamp_(0.01).div_(answers.sum(-1, keepdim=True))
        if self.defect == "uses the batch's mean":
            return (answers + answers.mean(0)) / 2 if len(answers) else answers
        if self.defect == "is not finite":
            return answers.log()
        if self.defect == "mixes rows":
            return answers.roll(1, 0)
        if self.defect == "is random":
            return (torch.rand_like(answers) + answers).softmax(-1)
        if self.defect == "loses the winner":
            return 1 - answers if answers.shape[-1] == 2 else answers.roll(1, -1)
        return answers * 2  # is no distribution


@pytest.mark.parametrize(
    ("defect", "check"),
    [
        ("writes in place", "leaves_its_input_alone"),
        ("uses the batch's mean", "a_row_does_not_see_its_batch"),
        ("uses the batch's mean", "what_others_send_does_not_move_a_row"),
        ("is not finite", "gives_finite_rows_of_its_kind"),
        ("is no distribution", "gives_finite_rows_of_its_kind"),
        ("mixes rows", "a_row_does_not_see_its_batch"),
        ("mixes rows", "what_others_send_does_not_move_a_row"),
        ("is random", "says_whether_it_is_deterministic"),
        ("loses the winner", "keeps_the_winner_where_it_says_so"),
    ],
)
def test_a_planted_defect_turns_the_contract_red(defect: str, check: str) -> None:
    with pytest.raises(AssertionError):
        getattr(Contract(), check)(Planted(defect), "probabilities", torch.float32)


@pytest.mark.parametrize(("defense", "kind"), CASES, ids=names)
def test_many_classes_are_no_exception(defense: Defense, kind: Kind) -> None:
    rows = rows_for(defense, kind, 1, 100_000)
    given = defense(rows)
    assert torch.isfinite(given).all()
    assert defense.given(kind) != "probabilities" or is_distribution(given)
    assert defense.cost(100_000, Reach(radius=3.0, box=(-1.0, 1.0))).bits >= 0


@pytest.mark.parametrize("defense", MEMBERS, ids=names)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_chain_never_costs_more_for_an_upstream_that_says_less(
    defense: Defense, classes: int
) -> None:
    open_cost = defense.cost(classes)
    for known in (Reach(radius=1.0), Reach(radius=1.0, box=(-0.5, 0.5))):
        cost = defense.cost(classes, known)
        assert cost.bits <= open_cost.bits
        assert cost.mu <= open_cost.mu
        assert cost.pure <= open_cost.pure


@pytest.mark.parametrize("defense", MEMBERS, ids=names)
def test_what_it_gives_stays_within_its_reach(defense: Defense) -> None:
    kind = defense.accepts[0]
    rows = rows_for(defense, kind, 200, 10)
    upstream = Reach(box=(-1.0, 1.0)) if kind in ("values", "embeddings") else Reach()
    rows = rows.clamp(*upstream.box)
    reach = defense.reach(10, upstream)
    given = defense(rows).double()
    assert (given >= reach.box[0] - 1e-6).all()
    assert (given <= reach.box[1] + 1e-6).all()
    if reach.radius == float("inf"):
        return
    center = torch.full((10,), 0.1) if defense.given(kind) == "probabilities" else torch.zeros(10)
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
    assert "sixteen bytes" not in repr(defense)
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


COUNTABLE = [one for one in MEMBERS if one.deterministic and one.cost(4).bits < 30]
KNOWN = (Reach(), Reach(named=1), Reach(named=2))


@pytest.mark.parametrize(
    ("defense", "known"),
    [
        *itertools.product([one for one in COUNTABLE if one != Sign()], KNOWN),
        (Sign(), Reach()),
        (RoundTo(0.5), Reach(box=(-1.0, 1.2))),
        (RoundTo(0.3), Reach(box=(-1.0, 1.0))),
        (RoundTo(0.5), Reach(radius=2.0)),
    ],
    ids=names,
)
def test_no_more_answers_occur_than_it_is_counted_for(defense: Defense, known: Reach) -> None:
    """Counts the answers to 60,000 random rows of four classes, sharp and flat, tied and not."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60_000, 4, generator=generator) * torch.logspace(-3, 1, 60_000).unsqueeze(1)
    rows[::7] = rows[::7].round(decimals=1)
    if math.isfinite(known.radius):
        rows = ClipNorm(known.radius)(rows)
    rows = rows.clamp(*known.box)
    if "embeddings" not in defense.accepts:
        rows = rows.softmax(-1)
    start = rows if known.named is None else TopK(known.named).compact(rows)
    answers = len(dense(defense.compact(start)).unique(dim=0))
    assert answers <= 2 ** defense.cost(4, known).bits * (1 + 1e-9)
    assert answers > 1


@pytest.mark.parametrize(("defense", "kind"), CASES, ids=names)
def test_noise_is_an_argument(defense: Defense, kind: str) -> None:
    """A call is what ``draw`` gives, put into a function of answers and noise alone."""
    rows = rows_for(defense, kind, 20, 8)
    with replayed_noise(5):
        answers = defense(rows.clone())
    with replayed_noise(5):
        noise = defense.draw(rows.shape)
    if noise is None:
        assert defense.deterministic
        with pytest.raises(ConfigError, match="takes no noise: call it"):
            defense.with_noise(rows, rows)
        return
    assert not defense.deterministic
    for _ in range(2):
        assert torch.equal(defense.with_noise(rows.clone(), noise.clone()), answers)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("defense", "kind"), [case for case in CASES if case[0].keeps_nan], ids=names
)
def test_what_keeps_nan_leaves_every_broken_row_broken(defense: Defense, kind: str, bad) -> None:
    """The Shield then looks once, behind it: a row that looks whole there would be released."""
    rows = rows_for(defense, kind, 20, 8)
    rows[3, 5] = bad
    try:
        given = defense(rows)
    except AnswerError:
        return  # it looks itself, as where whole steps are released
    assert not torch.isfinite(given[3]).all()
    assert torch.isfinite(given[[0, 1, 2, 4, 5]]).all()


class WithNoise(torch.nn.Module):
    """What a runtime gets: a defense as a function of answers and noise."""

    def __init__(self, defense: Defense) -> None:
        super().__init__()
        self.defense = defense

    def forward(self, answers: Tensor, noise: Tensor) -> Tensor:
        return self.defense.with_noise(answers, noise)


NOISY = [(member, kind) for member, kind in CASES if not member.deterministic]


@pytest.mark.parametrize(("defense", "kind"), NOISY, ids=names)
def test_a_graph_takes_its_noise_and_draws_none(defense: Defense, kind: str) -> None:
    rows = rows_for(defense, kind, 6, 8)
    noise = defense.draw(rows.shape)
    program = torch.export.export(WithNoise(defense), (rows, noise))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in called if "random" in name or "rounded" in name or "coin" in name}
    again = defense.draw(rows.shape)
    assert torch.equal(program.module()(rows, again), defense.with_noise(rows, again))


def test_a_chain_takes_the_noise_of_every_stage() -> None:
    chain = Chain.of((ClipNorm(2.0), GaussianNoise(1.0), RandomizedResponse(3.0)), "logits")
    rows = torch.randn(9, 5)
    noise = chain.draw(rows.shape)
    assert [part is not None for part in noise] == [not one.deterministic for one in chain.stages]
    assert torch.equal(chain(rows, noise=noise), chain(rows, noise=noise))
    drawn = {tuple(chain(rows).flatten().tolist()) for _ in range(9)}
    assert len(drawn) > 1
