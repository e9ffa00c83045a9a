"""Boxes in another form than corners in pixels are refused by name, true ones and released ones."""

import pytest
import torch
from detectors import SIDE, Finds, hardened, sets
from torch import Tensor

import shieldnet as sn

USE = sn.Tier("use", ())


def wide(boxes: Tensor) -> Tensor:
    """Writes corners as x, y, width and height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


WRONG = {
    "normalized": (lambda boxes: boxes / SIDE, r"between 0 and 1: they are normalized.*\(16, 16"),
    "xywh": (wide, r"\(x2 < x1 or y2 < y1\).*x2 = x1 . width"),
    "reversed": (lambda boxes: boxes.flip(1), r"\(x2 < x1 or y2 < y1\)"),
    "outside": (lambda boxes: boxes + SIDE, "outside of the image.*scale boxes"),
}


class Writes(Finds):
    """Answers with boxes in another form."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def _found(self, means: Tensor) -> dict[str, Tensor]:
        found = super()._found(means)
        return {**found, "boxes": self.change(found["boxes"])}


def as_it_is(model: Finds) -> sn.Shield:
    kinds = {"scores": "binary_probabilities"}
    return sn.Shield(model.eval(), outputs=kinds, also={"boxes": (), "labels": ()})


@pytest.mark.parametrize("form", WRONG)
def test_true_boxes_in_another_form_are_refused(form) -> None:
    change, words = WRONG[form]
    data = sets()
    images, targets = data["members"]
    data["members"] = images, [{**own, "boxes": change(own["boxes"])} for own in targets]
    expected = (
        rf"boxes of the members.*upper left corner.*in pixels.*row \d+ of the members has.*{words}"
    )
    with pytest.raises(sn.errors.DataError, match=expected):
        sn.audit(hardened(Finds()), **data, tier=USE)


@pytest.mark.parametrize("form", WRONG)
def test_released_boxes_in_another_form_are_refused(form) -> None:
    change, words = WRONG[form]
    with pytest.raises(sn.errors.AnswerError, match=f"model that releases.*in pixels.*{words}"):
        sn.audit(as_it_is(Writes(change)), **sets(), tier=USE)


def test_a_model_whose_boxes_all_paint_nothing_is_refused() -> None:
    def point(boxes: Tensor) -> Tensor:
        return torch.cat([boxes[:, :2], boxes[:, :2]], 1)

    with pytest.raises(sn.errors.AnswerError, match="have no area in the image"):
        sn.audit(as_it_is(Writes(point)), **sets(), tier=USE)

    class Unsure(Finds):
        def _found(self, means: Tensor) -> dict[str, Tensor]:
            found = super()._found(means)
            return {**found, "scores": found["scores"] * 0}

    with pytest.raises(sn.errors.AnswerError, match="a score of 0"):
        sn.audit(as_it_is(Unsure()), **sets(), tier=USE)


def test_boxes_that_defenses_leave_no_area_and_boxes_partly_outside_are_read() -> None:
    coarse = {"boxes": (sn.ClipRange(0.0, 1024.0), sn.RoundTo(512.0)), "labels": ()}
    sn.audit(hardened(Finds(), also=coarse), **sets(), tier=USE, engine="inline")
    data = {
        name: (images, [{**own, "boxes": own["boxes"] - 1} for own in targets])
        for name, (images, targets) in sets().items()
    }
    sn.audit(as_it_is(Writes(lambda boxes: boxes - 1)), **data, tier=USE, engine="inline")


def test_one_small_box_and_a_detector_that_finds_none_are_read() -> None:
    data = sets()
    data["members"][1][0]["boxes"][0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    nothing = Finds()
    nothing._found = lambda means: {  # type: ignore[method-assign]
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0).long(),
        "scores": torch.zeros(0),
    }
    for model in (Finds(), nothing):
        sn.audit(as_it_is(model), **data, tier=USE, engine="inline")


def test_images_with_channels_last_and_of_pil_are_refused() -> None:
    data = {name: (images.movedim(1, -1), targets) for name, (images, targets) in sets().items()}

    class Last(Finds):
        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            return super().forward(images.movedim(-1, 1))

    with pytest.raises(
        sn.errors.DataError, match=r"channels, height, width.*\(16, 16, 1\).*permute"
    ):
        sn.audit(as_it_is(Last()), **data, tier=USE)
    image = pytest.importorskip("PIL.Image")
    data = sets()
    drawn = [image.new("L", (SIDE, SIDE)) for _ in data["members"][0]]
    with pytest.raises(sn.errors.DataError, match="as tensors or arrays, got PIL.Image.Image"):
        sn.audit(as_it_is(Finds()), **{**data, "members": (drawn, data["members"][1])}, tier=USE)


def test_lists_of_numbers_are_read_like_tensors() -> None:
    lists = {
        name: (images, [{key: own.tolist() for key, own in one.items()} for one in targets])
        for name, (images, targets) in sets().items()
    }
    for _, targets in lists.values():
        targets[0] = {"boxes": [], "labels": []}
    tensors = sets()
    for _, targets in tensors.values():
        targets[0] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    reports = [
        sn.audit(hardened(Finds()), **one, tier=USE, engine="inline") for one in (lists, tensors)
    ]
    assert reports[0].hashes == reports[1].hashes


def test_whole_boxes_are_read_as_boxes() -> None:
    report = sn.audit(
        as_it_is(Writes(lambda boxes: boxes.long())), **sets(), tier=USE, engine="inline"
    )
    plain = sn.audit(as_it_is(Finds()), **sets(), tier=USE, engine="inline")
    assert [str(subject["accuracy"]) for subject in report.subjects] == [
        str(subject["accuracy"]) for subject in plain.subjects
    ]


class Scores(Finds):
    """Answers with scores in another form."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def _found(self, means: Tensor) -> dict[str, Tensor]:
        found = super()._found(means)
        return {**found, "scores": self.change(found["scores"])}


@pytest.mark.parametrize("change", [torch.logit, lambda p: 100 * p, lambda p: p * torch.nan])
def test_scores_outside_of_0_and_1_are_refused(change) -> None:
    boxes = {"outputs": {"boxes": "values"}, "also": {"scores": (), "labels": ()}}
    scores = {"outputs": {"scores": "values"}, "also": {"boxes": (), "labels": ()}}
    for settings in (boxes, scores):
        shield = sn.Shield(Scores(change).eval(), **settings)
        with pytest.raises(sn.errors.AnswerError, match="scores|NaN"):
            sn.audit(shield, **sets(), tier=USE, engine="inline")
    shield = sn.Shield(Scores(change).eval(), **boxes)
    with pytest.raises(sn.errors.AnswerError, match="scores of boxes between 0 and 1.*logits"):
        sn.audit(shield, **sets(), tier=USE, engine="inline")


def test_logits_are_read_as_the_scores_that_they_state() -> None:
    shields = [
        as_it_is(Finds()),
        sn.Shield(
            Scores(torch.logit).eval(),
            outputs={"scores": "binary_logits"},
            also={"boxes": (), "labels": ()},
        ),
        sn.Shield(
            Scores(torch.logit).eval(),
            outputs={"boxes": "values", "scores": "binary_logits"},
            also={"scores": (sn.Round(6),), "labels": ()},
        ),
    ]
    reports = [sn.audit(shield, **sets(), tier=USE, engine="inline") for shield in shields]
    accuracy = [subject["accuracy"].value for one in reports for subject in one.subjects]
    assert accuracy == pytest.approx([accuracy[0]] * len(accuracy), abs=1e-3)


def test_a_detector_that_reads_lists_alone_is_refused_with_a_fix() -> None:
    class Lists(Finds):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            if not isinstance(images, list):
                raise TypeError("expected a list")
            return super().forward(images)

    with pytest.raises(sn.errors.DataError, match="reads a list of images.*list.images"):
        sn.audit(as_it_is(Lists()), **sets(), tier=USE)
