"""Answers inside tuples, dicts, dataclasses and ModelOutputs."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

Pair = namedtuple("Pair", ["scores", "boxes"])


@dataclass
class Detection:
    logits: Tensor
    boxes: Tensor | None = None
    loss: Tensor | None = None


@dataclass(frozen=True)
class Frozen:
    logits: Tensor


class Says(nn.Module):
    """Returns what the test decided, whatever it is asked."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output


SCORES = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
BOXES = torch.randn(3, 4)


def hardened(output: Any, **settings: Any) -> Any:
    return sn.harden(Says(output), "strict", **settings)(torch.zeros(1))


@pytest.mark.parametrize(
    ("output", "read"),
    [
        (SCORES, lambda out: out),
        ((SCORES,), lambda out: out[0]),
        ([SCORES], lambda out: out[0]),
        ({"logits": SCORES}, lambda out: out["logits"]),
        ({"anything": SCORES}, lambda out: out["anything"]),
        (OrderedDict(logits=SCORES), lambda out: out["logits"]),
        ({"head": {"logits": SCORES}}, lambda out: out["head"]["logits"]),
        ((None, {"logits": SCORES}), lambda out: out[1]["logits"]),
        (Detection(SCORES), lambda out: out.logits),
        (Frozen(SCORES), lambda out: out.logits),
        (Pair(SCORES, None), lambda out: out.scores),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_same_type_comes_back_with_a_defended_answer(output, read) -> None:
    released = hardened(output)
    assert type(released) is type(output)
    assert torch.equal(read(released), sn.harden(Says(SCORES), "strict")(torch.zeros(1)))
    assert torch.equal(read(output), SCORES), "the model's own output is not touched"


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (Detection(SCORES, BOXES), "boxes"),
        (Detection(SCORES, loss=torch.zeros(())), "loss"),
        ({"logits": SCORES, "hidden_states": (BOXES, BOXES)}, r"hidden_states \(Tensor x 2\)"),
        ({"logits": SCORES, "cache": object()}, r"cache \(object\)"),
        ({"logits": SCORES, "temperature": 0.3}, r"temperature \(float\)"),
        ({"logits": SCORES, "words": ["spam", "ham"]}, "words"),
    ],
)
def test_what_no_defense_covers_is_refused_by_name(output, named) -> None:
    with pytest.raises(sn.errors.AnswerError, match=rf"also returns {named}.*nothing was released"):
        hardened(output)


def test_fields_are_dropped_by_name() -> None:
    output = {"logits": SCORES, "hidden_states": (BOXES, BOXES), "loss": torch.zeros(())}
    assert set(hardened(output, drop=("hidden_states", "loss"))) == {"logits"}
    assert hardened((SCORES, BOXES), outputs={"0": "logits"}, drop=("1",))[1] is None
    assert hardened(Detection(SCORES, BOXES), drop="boxes").boxes is None


def test_other_fields_get_defenses_of_their_own_and_a_cost() -> None:
    shield = sn.Shield(
        Says(Pair(SCORES, BOXES)),
        sn.Label(),
        outputs={"scores": "logits", "boxes": "values"},
        also={"boxes": (sn.ClipRange(0.0, 7.0), sn.RoundTo(1.0))},
    )
    assert shield.cost(5).bits == float("inf"), "not known before the first answer"
    released = shield(torch.zeros(1))
    assert torch.equal(released.boxes, BOXES.clamp(0, 7).round())
    assert shield.cost().bits == pytest.approx(2.3219 + 4 * 3, abs=1e-3)
    assert "boxes: ClipRange(low=0.0, high=7.0) -> RoundTo(step=1.0)" in shield.describe()


def test_a_field_released_as_it_is_has_an_infinite_cost() -> None:
    shield = sn.harden(Says((SCORES, BOXES)), outputs={"0": "logits"}, also={"1": ()})
    assert torch.equal(shield(torch.zeros(1))[1], BOXES)
    assert shield.cost().bits == float("inf")


def test_a_field_without_a_row_for_each_answer_has_no_privacy_cost_and_is_refused() -> None:
    shield = sn.Shield(
        Says({"logits": SCORES[:1], "boxes": [torch.rand(50, 4)]}),
        sn.Label(),
        outputs={"logits": "logits", "boxes": "values"},
        also={"boxes": (sn.ClipRange(0, 1), sn.RoundTo(0.25))},
    )
    with pytest.raises(
        sn.errors.AnswerError, match=r"Expected boxes.0 to have a row for each of the 1"
    ):
        shield(torch.zeros(1))


@pytest.mark.parametrize("boxes", [[], [BOXES], [BOXES, BOXES], None])
def test_a_dropped_field_does_not_say_how_much_there_was(boxes) -> None:
    assert list(hardened({"logits": SCORES, "boxes": boxes}, drop="boxes")) == ["logits"]


def test_names_that_change_from_answer_to_answer_are_refused() -> None:
    model = Says({"score_1.25": SCORES})
    shield = sn.harden(model)
    shield(torch.zeros(1))
    model.output = {"score_9.75": SCORES}
    with pytest.raises(
        sn.errors.AnswerError, match=r"The first had score_1.25, this one has score_9.75. Have"
    ):
        shield(torch.zeros(1))


def test_one_name_stands_for_all_that_is_inside() -> None:
    output = {"logits": SCORES, "hidden": (BOXES, (BOXES,))}
    shield = sn.Shield(
        Says(output),
        sn.Label(),
        outputs={"logits": "logits", "hidden": "embeddings"},
        also={"hidden": (sn.Sign(),)},
    )
    released = shield(torch.zeros(1))
    assert torch.equal(
        released["hidden"][1][0],
        sn.Shield(Says(BOXES), sn.Sign(), outputs="embeddings")(torch.zeros(1)),
    )
    assert shield.cost().bits == pytest.approx(2.3219 + 4 + 4, abs=1e-3)


def test_several_axes_are_named_by_field() -> None:
    output = {"logits": torch.randn(2, 5, 4, 4), "depth": torch.randn(2, 1, 4, 4)}
    shield = sn.Shield(
        Says(output),
        sn.Label(),
        outputs={"logits": "logits", "depth": "values"},
        axis={"logits": 1},
        also={"depth": (sn.ClipRange(0, 1), sn.RoundTo(0.25))},
    )
    released = shield(torch.zeros(1))
    assert released["depth"].shape == (2, 1, 4, 4)
    assert torch.equal(released["logits"].argmax(1), output["logits"].argmax(1))


@pytest.mark.parametrize(
    ("output", "settings", "words"),
    [
        ((SCORES, BOXES), {}, "it holds 0, 1. Name it"),
        ({"a": SCORES}, {"outputs": {"b": "logits"}}, r"to find b in .*\(dict\); it holds a"),
        ({}, {}, "it holds nothing"),
        (torch.max(SCORES, 1), {}, "it holds 0, 1. Name it"),
        (SCORES, {"outputs": {"logits": "logits"}}, "it holds the output itself"),
    ],
)
def test_an_answer_that_is_not_found_is_refused_with_what_is_there(output, settings, words) -> None:
    with pytest.raises(sn.errors.AnswerError, match=words):
        hardened(output, **settings)


def test_an_answer_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(
        sn.errors.AnswerError, match="Expected the answer to be a tensor, got float"
    ):
        hardened({"a": 0.5}, outputs={"a": "logits"})


def test_a_container_that_hides_more_than_its_fields_is_refused() -> None:
    @dataclass
    class Secretive:
        logits: Tensor
        cache: Tensor | None = field(default=None, init=False)

    class Rich(dict):
        pass

    for output in (Secretive(SCORES), Rich(logits=SCORES)):
        with pytest.raises(
            sn.errors.AnswerError, match="cannot be rebuilt from its defended fields"
        ):
            hardened(output)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"also": {"boxes": (sn.Sign(),)}}, "Expected the kind of boxes beside its defenses"),
        ({"outputs": {"a": "logits", "b": "values"}}, "The field b has no defenses of its own"),
        ({"outputs": {}}, "Expected outputs to name at least one field"),
        ({"outputs": {"a": "scores"}}, "Expected outputs to be one of"),
    ],
)
def test_settings_that_leave_a_field_open_are_refused(settings, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.harden(Says(SCORES), **settings)
