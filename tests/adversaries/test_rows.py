"""The adversary reads, in the answer to its own row, what others have asked in the same batch."""

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shieldnet as sn

ROWS = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
MIXED = "Rows of a batch change each other: the answer to row . of 8 changed when"
RANDOM = "The model answers row . of 8 differently when it is asked the same again"


class Mixes(nn.Module):
    """Applies a function to the whole batch of a layer's scores."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 4)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.layer(x))


def _mixed_by_coin(scores: Tensor) -> Tensor:
    return scores + scores.mean(0) if np.random.default_rng().random() < 0.7 else scores


def _dynamically_quantized(scores: Tensor) -> Tensor:
    step = scores.abs().max() / 127
    return (scores / step).round() * step


def _first_served(scores: Tensor) -> Tensor:
    """A mixture of experts whose experts take two rows each, in order."""
    expert = scores.argmax(-1)
    turn = torch.stack([(expert[:place] == expert[place]).sum() for place in range(len(scores))])
    return torch.where((turn < 2).unsqueeze(-1), scores, torch.zeros_like(scores))


MIXING = {
    "normalized over the batch": lambda z: (z - z.mean(0)) / (z.std(0, correction=0) + 1e-5),
    "functional batch norm": lambda z: F.batch_norm(z, None, None, training=True),
    "scaled by the batch's largest": lambda z: z / z.abs().max(),
    "softmax over the batch": lambda z: z.softmax(0),
    "attention across rows": lambda z: z + (z @ z.T).softmax(-1) @ z,
    "cumulative sum": lambda z: z.cumsum(0),
    "cumulative sum from the end": lambda z: z.flip(0).cumsum(0).flip(0),
    "moved by one row": lambda z: z + 0.1 * z.roll(1, 0),
    "moved by one row behind a size": lambda z: z + 0.1 * z.roll(1, 0) if len(z) >= 6 else z,
    "sorted by a score": lambda z: z[z[:, 0].argsort()],
    "number of rows": lambda z: z * len(z),
    "quantized by the batch's range": _dynamically_quantized,
    "capacity of experts": _first_served,
    "rank within the batch": lambda z: z + z[:, :1].argsort(0).argsort(0),
}
DRAWN = {
    "dropout": lambda z: F.dropout(z, 0.5),
    "noise of torch": lambda z: z + torch.randn_like(z),
    "noise of numpy": lambda z: z + float(np.random.default_rng().normal()),
}


@pytest.mark.parametrize("name", MIXING)
def test_rows_that_change_each_other_are_refused_whatever_does_it(name) -> None:
    shield = sn.harden(Mixes(MIXING[name]))
    with pytest.raises(sn.errors.AnswerError, match=MIXED):
        shield(ROWS)
    with pytest.raises(sn.errors.AnswerError, match=MIXED):
        sn.harden(Mixes(MIXING[name]), example=ROWS)
    assert shield.cost(4).bits == 4, "a cost is no answer"


@pytest.mark.parametrize("name", DRAWN)
def test_answers_that_are_drawn_are_refused_whatever_draws_them(name) -> None:
    state = torch.get_rng_state()
    for rows in (ROWS, ROWS[:1]):
        shield = sn.harden(Mixes(DRAWN[name]))
        with pytest.raises(
            sn.errors.AnswerError, match="differently when it is asked the same again"
        ):
            shield(rows)
    if name == "noise of numpy":
        assert torch.equal(torch.get_rng_state(), state)


def test_what_mixes_by_a_coin_is_refused_and_stays_refused() -> None:
    shield = sn.harden(Mixes(_mixed_by_coin))
    refusals = 0
    for _ in range(6):
        try:
            shield(ROWS)
        except sn.errors.AnswerError:
            refusals += 1
    assert refusals == 6


@pytest.mark.parametrize("name", ["normalized over the batch", "number of rows", "cumulative sum"])
def test_a_function_of_arrays_is_tried_as_a_module_is(name) -> None:
    model = Mixes(MIXING[name])

    def function(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()

    with pytest.raises(sn.errors.AnswerError, match=MIXED):
        sn.Shield.around(function, sn.Round(1), outputs="logits")(ROWS.numpy())
    with pytest.raises(sn.errors.AnswerError, match=MIXED):
        sn.Shield.around(function, sn.Round(1), outputs="logits", example=ROWS.numpy())


@pytest.mark.parametrize("name", MIXING)
def test_rows_asked_one_by_one_cannot_change_each_other(name) -> None:
    """By construction: nothing is tried on batches, as no batch is ever asked."""
    if name in ("number of rows", "functional batch norm"):
        pytest.skip("with one row: refused by the model itself, or nothing to see")
    shield = sn.Shield(Mixes(MIXING[name]), sn.Round(3), micro_batch=1)
    answers = shield(ROWS)
    others = torch.cat([ROWS[:1], ROWS[1:] * 5 + 3])
    assert torch.equal(shield(others)[0], answers[0])


def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)
        )


def _exported(model: nn.Module) -> nn.Module:
    size = ({0: torch.export.Dim("rows", min=2)},)
    return torch.export.export(model, (ROWS,), dynamic_shapes=size).module()


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit", "ignore::torch.jit.TracerWarning", "ignore:.*treespec"
)
class TestPrograms:
    def test_a_program_exported_in_training_mode_is_refused_by_its_operators(self) -> None:
        with pytest.raises(
            sn.errors.ConfigError, match=r"calls aten.batch_norm.default .*model.eval\(\)"
        ):
            sn.harden(_exported(_net().train()))
        decomposed = torch.export.export(nn.Sequential(nn.Dropout()), (ROWS,)).run_decompositions()
        with pytest.raises(sn.errors.ConfigError, match=r"calls aten.native_dropout.default"):
            sn.harden(decomposed.module())
        program = _exported(_net().eval())
        assert sn.harden(program)(ROWS).shape == (8, 3)

    def test_operators_that_draw_are_refused_and_those_switched_off_are_not(self) -> None:
        class Draws(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + torch.rand(4)

        class Attends(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                rows = super().forward(x).unsqueeze(1)
                return F.scaled_dot_product_attention(rows, rows, rows).squeeze(1)

        for make in (_exported, torch.fx.symbolic_trace):
            if make is _exported:
                with pytest.raises(sn.errors.ConfigError, match="calls aten.rand.default"):
                    sn.harden(make(Draws(6, 4)))
            assert sn.harden(make(Attends(6, 4)))(ROWS).shape == (8, 4)
            off = nn.Sequential(nn.Linear(6, 4), nn.Dropout()).eval()
            assert sn.harden(make(off))(ROWS).shape == (8, 4)

        class Functional(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return F.dropout(super().forward(x))

        with pytest.raises(sn.errors.ConfigError, match="calls dropout"):
            sn.harden(torch.fx.symbolic_trace(Functional(6, 4)))

    def test_a_trace_in_training_mode_is_refused_by_what_it_does(self) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
        traced = torch.jit.trace(model, ROWS)
        with pytest.raises(sn.errors.AnswerError, match=MIXED):
            sn.harden(traced)(ROWS)

    def test_a_program_that_takes_one_size_alone_is_tried_in_that_size(self) -> None:
        fixed = torch.export.export(nn.Linear(6, 4), (ROWS,)).module()
        shield = sn.harden(fixed, example=ROWS)
        assert shield(ROWS).shape == (8, 4)
        mixing = torch.export.export(Mixes(MIXING["softmax over the batch"]), (ROWS,)).module()
        with pytest.raises(sn.errors.AnswerError, match=MIXED):
            sn.harden(mixing)(ROWS)


class Counted(nn.Module):
    """Keeps count in a buffer, and looks words up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 5)
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))
        self.calls = 0

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        self.asked += 1
        self.calls += 1
        words = self.table(tokens)
        return {"logits": words.mean(1) if mask is None else (words * mask.unsqueeze(-1)).sum(1)}


class TestTheTrial:
    def test_it_is_paid_with_the_first_answers_alone(self) -> None:
        model = Counted()
        shield = sn.harden(model)
        tokens = torch.arange(20).reshape(4, 5)
        shield(tokens[:1])
        assert model.calls == 3, "the row again, and twice at once"
        for _ in range(5):
            shield(tokens[:1])
        assert model.calls == 8
        shield(tokens)
        tried = model.calls
        for rows in (tokens, tokens[:2], tokens.repeat(2, 1)):
            shield(rows)
        assert model.calls == tried + 3
        shield(tokens.repeat(3, 1))
        assert model.calls > tried + 4, "more than twice as many rows are tried again"

    def test_buffers_generators_and_arguments_are_left_alone(self) -> None:
        class Ruins(Counted):
            def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
                answers = super().forward(tokens, mask)
                tokens.zero_()
                return answers

        model, state = Ruins(), torch.get_rng_state()
        shield = sn.harden(model)
        shield(torch.arange(20).reshape(4, 5))
        assert int(model.asked) == 1
        assert torch.equal(torch.get_rng_state(), state)

    def test_named_arguments_and_masks_are_rearranged_together(self) -> None:
        model = Counted()
        tokens = torch.arange(20).reshape(4, 5)
        mask = torch.rand(4, 5)
        shield = sn.harden(model, example={"tokens": tokens, "mask": mask})
        assert shield(tokens=tokens, mask=mask)["logits"].shape == (4, 5)

    def test_arguments_in_dicts_lists_words_and_tables_are_rearranged(self) -> None:
        class OfDict(nn.Linear):
            def forward(self, batch: dict[str, list[Tensor]]) -> Tensor:
                return super().forward(batch["x"][0]).cumsum(0)

        with pytest.raises(sn.errors.AnswerError, match=MIXED):
            sn.harden(OfDict(6, 4))({"x": [ROWS]})

        def of_words(words: list[str]) -> np.ndarray:
            lengths = np.array([float(len(word)) for word in words])
            return np.stack([lengths / lengths.sum(), 1 - lengths / lengths.sum()], 1)

        words = ["a", "of", "the", "with"]
        with pytest.raises(sn.errors.AnswerError, match="Rows of a batch change each other"):
            sn.Shield.around(of_words, sn.Label())(words)
        by_itself = sn.Shield.around(
            lambda words: np.array([[1 / len(word), 1 - 1 / len(word)] for word in words]),
            sn.Label(),
        )
        assert by_itself(words).shape == (4, 2)

    def test_rows_that_are_all_alike_show_nothing_and_it_goes_on(self) -> None:
        shield = sn.harden(Mixes(MIXING["scaled by the batch's largest"]), micro_batch=4)
        shield(torch.ones(4, 6))
        with pytest.raises(sn.errors.AnswerError, match="Rows of a batch change each other"):
            shield(ROWS)
        for example in (torch.ones(4, 6), ROWS[:1]):
            with pytest.raises(
                sn.errors.ConfigError, match="an example of at least two different rows"
            ):
                sn.harden(nn.Linear(6, 4), example=example)

    def test_it_begins_anew_where_modules_change_their_mode(self) -> None:
        class Functional(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return F.dropout(super().forward(x), training=self.training)

        model = Functional(6, 4).eval()
        shield = sn.harden(model, example=ROWS)
        model.train()
        with pytest.raises(sn.errors.AnswerError, match=RANDOM):
            shield(ROWS)
        shield.eval()
        assert shield(ROWS).shape == (8, 4)

    def test_last_bits_that_depend_on_the_size_of_a_batch_are_no_mixing(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10)
            )
        x = torch.randn(33, 3, 8, 8)
        assert sn.harden(model)(x).shape == (33, 10)
        assert sn.harden(copy.deepcopy(model).bfloat16())(x.bfloat16()).shape == (33, 10)
        assert sn.harden(model.double())(x.double()).shape == (33, 10)

    def test_copies_and_pickles_answer_and_no_row_is_an_answer_too(self) -> None:
        shield = sn.harden(nn.Linear(6, 4), example=ROWS)
        for twin in (copy.deepcopy(shield), pickle.loads(pickle.dumps(shield))):  # noqa: S301 - our own bytes
            assert torch.equal(twin(ROWS), shield(ROWS))
        assert sn.harden(nn.Linear(6, 4))(ROWS[:0]).shape == (0, 4)
        file = io.BytesIO()
        torch.save(shield.state_dict(), file)
        assert set(shield.state_dict()) == {"weight", "bias"}

    def test_a_compiled_shield_is_not_tried_but_an_example_is(self) -> None:
        torch._dynamo.reset()
        with pytest.raises(sn.errors.AnswerError, match=MIXED):
            torch.compile(
                sn.harden(Mixes(MIXING["softmax over the batch"]), example=ROWS),
                backend="aot_eager",
            )
