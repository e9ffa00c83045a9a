"""Every kind of answer: where the classes are, what a number means, what is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

GENERATOR = torch.Generator().manual_seed(0)


class Says(nn.Module):
    """Returns what it was given: the test decides what the model says."""

    def forward(self, x: object) -> object:
        return x


def test_a_segmentation_has_its_classes_on_axis_one() -> None:
    scores = torch.randn(2, 5, 6, 7, generator=GENERATOR) * 3
    shield = sn.harden(Says(), "balanced", axis=1)
    answers = shield(scores)
    assert answers.shape == scores.shape
    assert torch.equal(answers.argmax(1), scores.argmax(1))
    flat = sn.harden(Says(), "balanced")(scores.movedim(1, -1).reshape(-1, 5))
    assert torch.equal(answers.movedim(1, -1).reshape(-1, 5), flat)


def test_a_segmentations_bits_count_every_pixel_and_nothing_is_said_of_layout() -> None:
    shield = sn.harden(Says(), "strict", axis=1)
    shield(torch.randn(2, 5, 6, 7))
    assert shield.cost().bits == pytest.approx(6 * 7 * math.log2(5))
    assert "5 classes at 42 positions" in str(shield.certificate())
    assert "the layout of what has positions" in str(shield.certificate())
    assert sn.harden(Says(), "strict", axis=1).cost(5, positions=(6, 7)) == shield.cost()
    shield(torch.randn(1, 5, 10, 10))
    shield(torch.randn(1, 5, 2, 2))
    assert shield.cost().bits == pytest.approx(100 * math.log2(5)), "the largest so far"


def test_a_segmentation_releases_labels_without_the_class_axis() -> None:
    scores = torch.randn(2, 5, 6, 7)
    answers = sn.harden(Says(), "strict", axis=1, release="labels")(scores)
    assert torch.equal(answers, scores.argmax(1))


@pytest.mark.parametrize("settings", [{"axis": 1}, {"outputs": "binary_logits"}])
def test_before_the_first_answer_nothing_is_claimed_of_unknown_positions(settings) -> None:
    shield = sn.harden(Says(), "strict", **settings)
    with pytest.raises(
        sn.errors.ConfigError, match="How many positions an answer has is not known"
    ):
        shield.certificate(2)
    assert shield.certificate(2, positions=()).bits == 1
    assert shield.certificate(2, positions=(3, 4)).bits == 12


def test_a_coarser_grid_shows_one_answer_a_square_and_costs_its_squares() -> None:
    scores = torch.randn(2, 5, 6, 7) * 3
    shield = sn.Shield(Says(), sn.Coarsen(4), sn.Label(), axis=1)
    labels = shield(scores).argmax(1)
    assert (labels[:, :4, :4] == labels[:, :1, :1]).all()
    assert (labels[:, 4:, 4:] == labels[:, 4:5, 4:5]).all()
    mean = scores.softmax(1)[:, :, :4, :4].mean((2, 3))
    assert torch.equal(labels[:, 0, 0], mean.argmax(1))
    assert shield.cost().bits == pytest.approx(4 * math.log2(5))
    noisy = sn.Shield(Says(), sn.Coarsen(4), sn.RandomizedResponse(2.0), axis=1)
    assert noisy.cost(5, positions=(6, 7)).pure == pytest.approx(42 * 2.0)


def test_a_coarser_grid_needs_positions() -> None:
    with pytest.raises(
        sn.errors.AnswerError, match=r"Coarsen\(block=2\) expects answers with positions"
    ):
        sn.Shield(Says(), sn.Coarsen(2), sn.Label())(torch.randn(3, 4))


def test_a_language_model_has_its_classes_last() -> None:
    scores = torch.randn(2, 3, 50)
    shield = sn.Shield(Says(), sn.TopK(5), sn.Round(2), axis=-1)
    answers = shield(scores)
    assert answers.shape == scores.shape
    assert torch.equal(answers.argmax(-1), scores.argmax(-1))
    assert shield.cost().bits == pytest.approx(
        3 * sn.Shield(Says(), *shield.defenses).cost(50).bits
    )


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 12), (7, 2, 3)])
@pytest.mark.parametrize("preset", ["strict", "balanced", "open"])
def test_every_yes_or_no_is_a_row_of_its_own(shape, preset) -> None:
    scores = torch.randn(shape, generator=GENERATOR) * 3
    shield = sn.harden(Says(), preset, outputs="binary_logits")
    answers = shield(scores)
    assert answers.shape == scores.shape
    assert torch.equal(answers > 0, scores > 0)
    of_probabilities = sn.harden(Says(), preset, outputs="binary_probabilities")
    stated = of_probabilities(scores.sigmoid())
    assert torch.allclose(answers.sigmoid(), stated, atol=1e-6)
    labels = sn.harden(Says(), preset, outputs="binary_logits", release="labels")(scores)
    assert torch.equal(labels, (scores > 0).long())
    each = sn.harden(Says(), preset).cost(2).bits
    assert shield.cost().bits == pytest.approx(math.prod(shape[1:]) * each)


def test_labels_of_one_record_do_not_change_each_other() -> None:
    scores = torch.randn(20, 6)
    shield = sn.Shield(Says(), sn.Round(1), outputs="binary_logits")
    other = scores.clone()
    other[:, 1:] = -other[:, 1:]
    assert torch.equal(shield(scores)[:, 0], shield(other)[:, 0])


def test_a_logit_of_zero_means_no() -> None:
    shield = sn.harden(Says(), outputs="binary_logits", release="labels")
    assert shield(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 2, 2)])
def test_regression_values_keep_their_shape_and_sign(shape) -> None:
    values = torch.randn(shape, generator=GENERATOR) * 3
    shield = sn.Shield(Says(), sn.ClipRange(-4.0, 4.0), sn.RoundTo(0.5), outputs="values")
    answers = shield(values)
    assert answers.shape == values.shape
    assert torch.allclose(answers, (values.clamp(-4, 4) / 0.5).round() * 0.5)
    assert shield.cost().bits == pytest.approx(math.prod(shape[1:]) * math.log2(17))


def test_regression_without_a_clip_has_no_cost() -> None:
    assert sn.Shield(Says(), sn.RoundTo(0.5), outputs="values").cost(1).bits == math.inf


def test_noise_on_values_is_counted_by_their_range() -> None:
    gaussian = sn.Shield(Says(), sn.ClipRange(0, 10), sn.GaussianNoise(5.0), outputs="values")
    assert gaussian.cost(1).mu == pytest.approx(2.0)
    assert gaussian.cost(4).mu == pytest.approx(4.0)
    laplace = sn.Shield(Says(), sn.ClipRange(0, 10), sn.LaplaceNoise(5.0), outputs="values")
    assert laplace.cost(1).pure == pytest.approx(2.0)
    assert laplace.cost(3).pure == pytest.approx(6.0)
    assert laplace.cost(1).bits == pytest.approx(math.log2(1 + 5 / 5))


def test_embeddings_are_clipped_without_being_centered() -> None:
    vectors = torch.randn(50, 8) + 2.0
    shield = sn.Shield(Says(), sn.ClipNorm(1.0), outputs="embeddings")
    assert "Center" not in str(shield)
    answers = shield(vectors)
    assert torch.allclose(answers, vectors / vectors.norm(dim=1, keepdim=True), atol=1e-5)
    assert "[Center()] -> ClipNorm" in str(sn.Shield(Says(), sn.ClipNorm(1.0)))


def test_embeddings_are_quantized_signed_and_counted() -> None:
    vectors = torch.randn(50, 8)
    sign = sn.Shield(Says(), sn.Sign(), outputs="embeddings")
    assert torch.equal(sign(vectors), torch.where(vectors < 0, -1.0, 1.0))
    assert sign.cost().bits == 8
    grid = sn.Shield(Says(), sn.ClipNorm(1.0), sn.RoundTo(0.25), outputs="embeddings")
    grid(vectors)
    assert grid.cost().bits == pytest.approx(8 * math.log2(9))
    noisy = sn.Shield(Says(), sn.ClipNorm(1.0), sn.GaussianNoise(2.0), outputs="embeddings")
    noisy(vectors)
    assert noisy.cost().mu == pytest.approx(1.0)


def test_integers_come_on_request_and_are_the_same_mechanism() -> None:
    scores = torch.randn(4, 10)
    chain = (sn.ClipNorm(5.0), sn.GaussianNoise(2.0, integers=True))
    shield = sn.Shield(Says(), *chain)
    steps = shield(scores)
    assert steps.dtype == torch.int64
    assert shield.release == "integers"
    assert shield.cost() == sn.Shield(Says(), chain[0], sn.GaussianNoise(2.0)).cost(10)
    with pytest.raises(sn.errors.ConfigError, match="Release the integers as they are"):
        sn.Shield(Says(), *chain, sn.Label())
    with pytest.raises(sn.errors.ConfigError, match="integers, which cannot be released as labels"):
        sn.Shield(Says(), *chain, release="labels")


def test_integers_of_yes_or_no_keep_their_shape_and_state_a_distribution() -> None:
    chain = (sn.ClipNorm(5.0), sn.GaussianNoise(2.0, integers=True))
    shield = sn.Shield(Says(), *chain, outputs="binary_logits")
    steps = shield(torch.randn(4))
    assert steps.shape == (4,)
    stated = shield.distribution(steps)
    assert torch.allclose(stated[:, 1], (steps * 2.0**-4).sigmoid())
    of_classes = sn.Shield(Says(), *chain)
    assert torch.allclose(
        of_classes.distribution(of_classes(torch.randn(4, 3))).sum(-1), torch.ones(4)
    )
    assert of_classes.releases_scores


@pytest.mark.parametrize("chain", [(sn.TopK(1),), (sn.Round(0),), (sn.TopK(2), sn.Round(0))])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_released_tensor_holds_no_more_than_it_shows(chain, rows) -> None:
    for release in ("labels", "logits", "probabilities"):
        answers = sn.Shield(Says(), *chain, release=release)(torch.randn(rows, 200))
        assert answers.untyped_storage().nbytes() == answers.numel() * answers.element_size()


def test_a_released_zero_has_no_sign() -> None:
    shield = sn.Shield(Says(), sn.ClipRange(-0.4, 0.4), sn.RoundTo(1.0), outputs="values")
    answers = shield(torch.tensor([-3.0, -0.2, 0.2, 5.0]))
    assert not torch.signbit(answers).any()
    assert shield.cost().bits == 0


@pytest.mark.parametrize(
    ("low", "high", "step"), [(0, 0.15, 0.1), (-0.15, 0.15, 0.1), (-1, 1.2, 0.3), (5.0, 6.0, 0.1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_multiples_of_a_step_are_counted_with_the_ends_that_floats_have(
    low, high, step, dtype
) -> None:
    chain = (sn.ClipNorm(50.0), sn.ClipRange(low, high), sn.RoundTo(step))
    shield = sn.Shield(Says(), *chain, outputs="values")
    values = torch.cat([torch.linspace(low - 1, high + 1, 20_001), torch.tensor([low, high])])
    answers = shield(values.to(dtype))
    assert len(answers.unique()) <= 2 ** shield.cost().bits * (1 + 1e-9)


def test_several_coarser_grids_are_counted_by_each_block_alone() -> None:
    two = sn.Shield(Says(), sn.Coarsen(2), sn.Coarsen(3), sn.Label(), axis=1)
    assert two.cost(2, positions=(6,)).bits == 2
    shield = sn.Shield(Says(), sn.Coarsen(10), sn.Label(), axis=1)
    shield(torch.randn(1, 4, 2, 50))
    shield(torch.randn(1, 4, 1, 99))
    assert shield.cost().bits == 20, "the greatest extent along every axis"


@pytest.mark.parametrize("block", [2, 3, 5, 50])
def test_a_coarsened_square_has_one_row_bit_by_bit_and_adds_in_one_order(block) -> None:
    """On a GPU ``index_add_`` adds in any order: equal rows differed, and one was counted."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Called(TorchDispatchMode):
        names: set[str] = set()  # noqa: RUF012 - of one test

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.add(function.__name__.split(".")[0])
            return function(*args, **(kwargs or {}))

    rows = torch.randn(2, 17, 11, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    coarsen = sn.Coarsen(block)
    with Called() as called:
        coarse = coarsen(rows)
    adding = ("index_add", "scatter", "index_put", "segment", "bincount", "cumsum")
    assert not [name for name in called.names if name.startswith(adding)]
    places = [torch.arange(size) // block * block for size in rows.shape[1:3]]
    assert torch.equal(coarse, coarse[:, places[0]][:, :, places[1]])
    assert torch.equal(coarsen(rows[:1].clone())[0], coarse[0]), "in any batch"
    middle = coarse[0, 0, 0]
    wanted = rows[0, :block, :block].double().mean((0, 1))
    assert torch.allclose(middle.double(), wanted, atol=1e-6)
    chain = (coarsen, sn.TopK(3), sn.Round(2))
    released = sn.Shield(Says(), *chain, axis=-1, outputs="probabilities")(rows)
    assert torch.equal(released, released[:, places[0]][:, :, places[1]])


def test_a_tensor_of_another_class_leaves_what_it_carries_behind() -> None:
    class Tagged(Tensor):
        pass

    tagged = torch.randn(2, 3).as_subclass(Tagged)
    tagged.note = "the true answer"
    for chain in ((), (sn.Label(),), (sn.Temperature(2.0),)):
        answers = sn.Shield(Says(), *chain)(tagged)
        assert type(answers) is Tensor
        assert not hasattr(answers, "note")


def test_answers_defended_by_hand_carry_no_graph_either() -> None:
    model = nn.Linear(3, 4)
    for chain in ((), (sn.Temperature(2.0),)):
        assert not sn.Shield(model, *chain).defend(model(torch.randn(2, 3))).requires_grad


@pytest.mark.parametrize(
    ("settings", "chain", "output", "words"),
    [
        ({}, (), torch.zeros(2, 3, 4), "pass the class axis, axis=1 for a segmentation"),
        ({"axis": 4}, (), torch.zeros(2, 3, 4), r"with axis=4, got shape \(2, 3, 4\)"),
        ({"axis": -3}, (), torch.zeros(2, 3), r"with axis=-3, got shape \(2, 3\)"),
        ({"axis": 1}, (), torch.zeros(2, 0, 4, 4), "at least 2 classes"),
        ({"axis": 1}, (), torch.zeros(2, 3, 0, 4), "at least 2 classes"),
        (
            {},
            (),
            torch.zeros(2, 1),
            "For one number per row use outputs='binary_logits' or 'values'",
        ),
        ({"outputs": "binary_logits"}, (), torch.zeros(()), r"of shape \(rows,\) or \(rows, ...\)"),
        ({"outputs": "values"}, (), torch.zeros(3, 0), r"Expected values of shape \(rows,\)"),
        ({"outputs": "values"}, (), torch.tensor([1.0, math.nan]), "NaN or Inf in row 1 of 2"),
        ({"outputs": "embeddings"}, (), torch.zeros(2, 3, 4), "pass the class axis"),
        ({"outputs": "probabilities"}, (), torch.ones(2, 3, dtype=torch.int64), "got torch.int64"),
        ({"outputs": "probabilities"}, (), torch.ones(2, 3), "Row 0 of 2 .*it sums to 3"),
        (
            {"outputs": "probabilities"},
            (),
            torch.tensor([[0.5, 0.5], [1.5, -0.5]]),
            "Row 1 of 2 is not a distribution",
        ),
        (
            {"outputs": "probabilities", "axis": 1},
            (),
            torch.full((2, 2, 3, 3), 0.7),
            "Row 0 of 2 is not a distribution: it sums to 1.4",
        ),
        (
            {"outputs": "probabilities"},
            (),
            torch.tensor([[0.5, 0.5], [math.nan, 0.5]]),
            "NaN or Inf in row 1 of 2",
        ),
        ({"outputs": "binary_probabilities"}, (), torch.tensor([0.3, 1.3]), "Row 1 of 2 has"),
        ({"outputs": "values"}, (), torch.zeros(2, 2, dtype=torch.complex64), "got torch.complex"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_mend(settings, chain, output, words) -> None:
    with pytest.raises(sn.errors.AnswerError, match=words):
        sn.Shield(Says(), *chain, **settings)(output)


@pytest.mark.parametrize(
    ("chain", "settings", "words"),
    [
        ((sn.Round(1),), {"outputs": "values"}, "For values use ClipRange, ClipNorm, RoundTo"),
        ((sn.RoundTo(1.0),), {}, "For classes use Round, TopK, Confidence or Label"),
        ((sn.Sign(),), {"outputs": "values"}, r"Sign\(\) reads embeddings, but .* values"),
        ((), {"outputs": "values", "release": "labels"}, "Expected release to be one of values"),
        ((), {"outputs": "labels"}, "Expected outputs to be one of logits, probabilities, binary"),
        ((), {"axis": 0}, "Expected axis as an integer other than 0"),
        ((), {"axis": True}, "Expected axis as an integer"),
        ((), {"micro_batch": 0}, "Expected micro_batch >= 1"),
        (
            (sn.RoundTo(1.0), sn.ClipRange(0, 1)),
            {"outputs": "values"},
            r"Put ClipRange\(low=0, high=1\) before RoundTo",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_shield_is_made(chain, settings, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.Shield(Says(), *chain, **settings)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (0, 4)),
        ({"axis": 1}, (0, 4, 3, 3)),
        ({"axis": -1}, (0, 5, 4)),
        ({"outputs": "binary_logits"}, (0,)),
        ({"outputs": "binary_logits"}, (0, 6)),
        ({"outputs": "values"}, (0,)),
        ({"outputs": "embeddings"}, (0, 8)),
    ],
)
def test_an_empty_batch_gets_an_empty_answer_of_every_kind(settings, shape) -> None:
    chain: tuple[sn.Defense, ...] = (sn.TopK(2), sn.Round(1))
    if settings.get("outputs") in ("values", "embeddings"):
        chain = (sn.ClipNorm(1.0), sn.GaussianNoise(1.0))
    answers = sn.Shield(Says(), *chain, **settings)(torch.zeros(shape))
    assert answers.shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_segmentations_and_multi_label_come_in_every_float_type(dtype) -> None:
    scores = torch.randn(2, 5, 3, 3).to(dtype)
    wide = scores if dtype == torch.float64 else scores.float()
    shield = sn.harden(Says(), "open", axis=1)
    assert torch.equal(shield(scores), shield(wide))
    binary = sn.harden(Says(), "balanced", outputs="binary_logits")
    assert torch.equal(binary(scores), binary(wide))


def test_micro_batches_answer_as_the_whole_batch_does() -> None:
    model = nn.Linear(6, 4)
    rows = torch.randn(50, 6)
    whole = sn.harden(model)(rows)
    assert torch.allclose(sn.harden(model, micro_batch=16)(rows), whole)
    assert sn.harden(model, micro_batch=16)(rows[:0]).shape == (0, 4)
    seen: list[int] = []
    model.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    shield = sn.harden(model, micro_batch=16, example=rows[:8])
    seen.clear()
    shield(rows)
    assert seen == [16, 16, 16, 2]


def test_micro_batches_refuse_what_they_cannot_join() -> None:
    class Lists(nn.Module):
        def forward(self, x: Tensor) -> dict:
            return {"logits": x, "rows": list(x)}

    shield = sn.harden(Lists(), micro_batch=2, also={"rows": ()})
    with pytest.raises(
        sn.errors.AnswerError, match=r"Expected rows.0 to have one row for each of the 2"
    ):
        shield(torch.randn(4, 3))


def test_micro_batches_need_something_to_cut() -> None:
    class OfLists(nn.Module):
        def forward(self, x: list) -> Tensor:
            return torch.tensor(x)

    with pytest.raises(sn.errors.AnswerError, match="Expected a tensor, array or table with rows"):
        sn.harden(OfLists(), micro_batch=2)([[0.0, 1.0]])


def test_micro_batches_cut_what_has_rows_and_leave_the_rest() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, shift: Tensor, *, scale: float, mask: Tensor) -> dict:
            return {"logits": x * scale + shift, "mask": mask}

    x, mask = torch.randn(10, 3), torch.ones(10, dtype=torch.bool)
    shield = sn.harden(Two(), micro_batch=4, also={"mask": ()})
    answers = shield(x, torch.zeros(3), scale=2.0, mask=mask)
    assert answers["logits"].shape == (10, 3)
    assert torch.equal(answers["mask"], mask)
    assert shield.cost().bits == math.inf, "a field released as it is has no privacy cost"
