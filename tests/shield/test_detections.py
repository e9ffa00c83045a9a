"""Detectors: one dict for each image, any number of boxes, and an honest price."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

KINDS = {"scores": "binary_probabilities", "boxes": "values"}
ALSO = {"boxes": (sn.ClipRange(0.0, 64.0), sn.RoundTo(8.0)), "labels": ()}


class Detector(nn.Module):
    """Finds as many boxes as an image has pixels above 0, as torchvision's do in their form."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.more = more

    def forward(self, images: Tensor | list[Tensor]) -> list[dict[str, Any]]:
        return [self.one(image) for image in images]

    def one(self, image: Tensor) -> dict[str, Any]:
        found = image.flatten()[image.flatten() > 0] * self.scale
        corners = torch.stack([found * 7, found * 9, found * 30, found * 40], 1)
        scores = (found + 1).sigmoid()
        labels = (found * 10).long() % 5
        more = {name: of(found) for name, of in self.more.items()}
        return {"boxes": corners, "labels": labels, "scores": scores, **more}


@pytest.fixture
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, 2 + row, 2, generator=generator) for row in range(4)]
    drawn[2] = -drawn[2].abs()  # nothing to be found
    return drawn


def shield_of(model: nn.Module, **settings: Any) -> sn.Shield:
    return sn.harden(model, "strict", outputs=KINDS, also=ALSO, **settings)


def test_each_images_boxes_are_defended_and_named_once(images) -> None:
    model = Detector()
    released, bare = shield_of(model)(images), model(images)
    assert type(released) is list
    assert [len(image["scores"]) for image in released] == [len(image["scores"]) for image in bare]
    assert len({len(image["scores"]) for image in released}) > 1, "ragged"
    for one, raw in zip(released, bare, strict=True):
        assert list(one) == list(raw)
        assert torch.equal(one["boxes"], (raw["boxes"].clamp(0, 64) / 8).round() * 8)
        assert torch.equal(one["labels"], raw["labels"])
        assert torch.equal(one["scores"], (raw["scores"] > 0.5).float())
        for name in one:
            assert not one[name].requires_grad
            where = [field[name].untyped_storage().data_ptr() for field in (one, raw)]
            assert not len(one[name]) or where[0] != where[1]


def test_an_image_without_boxes_and_a_batch_without_images_are_answered(images) -> None:
    shield = shield_of(Detector())
    (empty,) = shield(images[2:3])
    assert empty["boxes"].shape == (0, 4)
    assert empty["scores"].shape == empty["labels"].shape == (0,)
    assert shield([]) == []
    assert shield(torch.zeros(0, 3, 4, 4)) == []
    assert len(shield(images)) == 4
    assert shield_of(Detector())([]) == [], "also first"


@pytest.mark.parametrize("sizes", [(4, 1, 2, 3), (1, 4)])
def test_the_form_of_an_answer_is_the_same_for_every_batch(sizes, images) -> None:
    shield = shield_of(Detector())
    for size in sizes:
        released = shield(images[:size])
        assert [set(image) for image in released] == [{"boxes", "labels", "scores"}] * size
    assert len(shield(torch.stack([images[0]] * 3))) == 3, "a batch in one tensor"


def test_images_one_by_one_answer_as_all_at_once(images) -> None:
    together = shield_of(Detector())(images)
    for size in (1, 3):
        apart = shield_of(Detector(), micro_batch=size)(images)
        for one, other in zip(together, apart, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    of_one_tensor = shield_of(Detector(), micro_batch=2)(torch.stack([images[0]] * 3))
    assert len(of_one_tensor) == 3


@pytest.mark.parametrize("settings", [{}, {"drop": ("boxes", "labels")}])
@pytest.mark.parametrize("defense", [sn.Label(), sn.RandomizedResponse(1.0)])
def test_the_number_of_boxes_is_an_answer_that_nothing_bounds(settings, defense, images) -> None:
    kinds = {"scores": KINDS["scores"]} if settings else KINDS
    also = {} if settings else ALSO
    shield = sn.Shield(Detector(), defense, outputs=kinds, also=also, **settings)
    for batch in (images[2:3], images, images[:0]):
        shield(batch)
        cost = shield.cost()
        assert cost.bits == cost.mu == cost.pure == cost.center == math.inf
    certificate = shield.certificate(queries=3)
    assert certificate.bits == math.inf
    assert "inf" in str(certificate) or "unbounded" in str(certificate)
    with pytest.raises(sn.errors.ConfigError, match="one row an answer"):
        sn.composed_epsilon(shield, queries=2, delta=1e-6)


def test_an_agreed_extent_is_no_bound_of_boxes(images) -> None:
    settings = {"outputs": {"scores": "binary_probabilities"}, "drop": ("boxes", "labels")}
    shield = sn.harden(Detector(), extent=sn.Extent(2, (100,)), **settings)
    for batch in (images, []):
        with pytest.raises(sn.errors.AnswerError, match="any number of boxes.*Leave extent= out"):
            shield(batch)
    with pytest.raises(sn.errors.ConfigError, match="Expected an extent that bounds an answer"):
        sn.harden(Detector(), extent=sn.Extent(2, any_number=True), **settings)


def test_a_first_field_that_is_dropped_is_refused_with_the_line_for_the_others(images) -> None:
    with pytest.raises(
        sn.errors.ConfigError, match="act on scores, .* drop= leaves out"
    ) as refused:
        sn.harden(Detector(), outputs=KINDS, also=ALSO, drop=("scores",))
    line = str(refused.value).partition("the others alone: ")[2].removesuffix(".")
    works = eval(line, {"sn": sn, "model": Detector()})  # noqa: S307 - a line of our own message
    assert set(works(images)[0]) == {"boxes", "labels"}
    assert works.certificate().bits == math.inf
    kinds = {"scores": "logits", "boxes": "logits"}
    also = {"boxes": (sn.TopK(1),), "labels": ()}
    axes = {"scores": 0, "boxes": 1}
    with pytest.raises(sn.errors.ConfigError, match=r"axis=\{'boxes': 1\}, micro_batch=1\)"):
        sn.ShieldSettings(
            (sn.TopK(1),), outputs=kinds, also=also, drop=("scores",), axis=axes, micro_batch=1
        )
    with pytest.raises(sn.errors.ConfigError, match="Name a field that is released first"):
        sn.harden(Detector(), outputs={"scores": "values"}, drop=("scores", "boxes", "labels"))


@pytest.mark.parametrize(
    ("shape", "side"), [((2, 3, 40, 64), 64), ((2, 640, 480, 3), 640), ((3, 30, 20), 30)]
)
@pytest.mark.parametrize("least", [-1.0, 0.0])
def test_the_suggested_range_is_the_images_and_tells_nothing_of_the_boxes(
    shape, side, least
) -> None:
    class Normalized(Detector):
        def one(self, image: Tensor) -> dict[str, Any]:
            found = super().one(image.flatten()[:9])
            return {**found, "boxes": found["boxes"].clamp(least, 1)}

    with pytest.raises(sn.errors.AnswerError, match=rf"ClipRange\(0.0, {side}.0\)"):
        sn.harden(Normalized())(torch.randn(shape).clamp(least))


MORE = {
    "masks": lambda found: found[:, None, None, None].expand(-1, 1, 2, 2),
    "image_id": lambda found: 7,
    "keypoints": lambda found: found[:, None].expand(-1, 6),
}


@pytest.mark.parametrize("more", [None, *MORE])
@pytest.mark.parametrize("settings", [{}, {"outputs": KINDS, "also": {"boxes": ALSO["boxes"]}}])
def test_the_first_refusal_names_the_line_that_works(more, settings, images) -> None:
    model = Detector(**({more: MORE[more]} if more else {}))
    with pytest.raises(sn.errors.AnswerError, match=r"as a detector does.*nothing was") as refused:
        sn.harden(model, **settings)(images)
    (line,) = re.findall(r"sn\.harden\(model.*\)(?=\.)", str(refused.value))
    works = eval(line, {"sn": sn, "model": model})  # noqa: S307 - a line of our own message
    assert {"boxes", "scores", "labels"} <= set(works(images)[0])
    side = max(max(image.shape[-2:]) for image in images)
    assert f"ClipRange(0.0, {side}.0), sn.RoundTo({side / 32})" in line


def test_names_that_come_and_go_and_other_forms_are_refused() -> None:
    class Changes(nn.Module):
        output: Any = None

        def forward(self, x: Any) -> Any:
            return self.output

    model = Changes()
    shield = sn.harden(model, outputs={"scores": "binary_probabilities"}, also={"more": ()})
    model.output = [{"scores": torch.rand(3)}]
    shield(torch.zeros(1))
    for other in (
        [{"scores": torch.rand(3)}, {"scores": torch.rand(3), "more": torch.rand(3)}],
        {"scores": torch.rand(3)},
    ):
        model.output = other
        with pytest.raises(sn.errors.AnswerError, match="form of the first one"):
            shield(torch.zeros(1))
    model.output = {"scores": torch.rand(3)}
    shield = sn.harden(model, outputs={"scores": "binary_probabilities"})
    shield(torch.zeros(1))
    for other in ([], [{"scores": torch.rand(3)}]):
        model.output = other
        with pytest.raises(sn.errors.AnswerError, match="form of the first one"):
            shield(torch.zeros(1))


def test_noise_that_is_keyed_on_inputs_and_an_audit_are_refused_in_words(images) -> None:
    chain = (sn.KeyedNoise(0.1, key=b"k" * 32, on="input"),)
    shield = sn.Shield(Detector(), *chain, outputs={"scores": "values"}, drop=("boxes", "labels"))
    with pytest.raises(sn.errors.AnswerError, match="draws its noise from the inputs"):
        shield(images)
    answers = shield_of(Detector())
    with pytest.raises(sn.errors.AnswerError, match="A detector's boxes are no rows"):
        answers.answer_in(answers(images))


def test_boxes_with_a_nan_are_refused(images) -> None:
    images[1][0, 0, 0] = math.inf
    with pytest.raises(sn.errors.AnswerError, match="NaN or Inf"):
        shield_of(Detector())(images)
