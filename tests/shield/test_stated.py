"""What a certificate says of heads, embedders and detectors, before and after an answer."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class TwoHeads(nn.Module):
    def __init__(self, form: type = dict) -> None:
        super().__init__()
        self.intent, self.topic, self.form = nn.Linear(6, 3), nn.Linear(6, 5), form

    def forward(self, x: Tensor) -> Any:
        heads = {"intent": self.intent(x), "topic": self.topic(x)}
        return heads if self.form is dict else tuple(heads.values())


class Detector(nn.Module):
    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"scores": row.sigmoid()} for row in x]


def two_heads() -> sn.Shield:
    return sn.harden(TwoHeads(), outputs={"intent": "logits", "topic": "logits"})


def embedder() -> sn.Shield:
    model = nn.Linear(6, 8)
    return sn.Shield(model, sn.ClipNorm(1.0), sn.GaussianNoise(0.1), outputs="embeddings")


def regression() -> sn.Shield:
    return sn.Shield(nn.Linear(6, 8), sn.ClipRange(0, 1), sn.RoundTo(0.1), outputs="values")


def test_the_classes_of_each_head_give_the_certificate_before_the_first_answer() -> None:
    asked, answered = two_heads(), two_heads()
    answered(X)
    sizes = {"intent": 3, "topic": 5}
    assert str(asked.certificate(classes=sizes)) == str(answered.certificate())
    assert asked.cost(classes=sizes) == answered.cost(classes=sizes) == answered.cost()
    assert "over 3 classes of intent, 5 classes of topic" in str(answered.certificate())


def test_a_head_whose_size_nobody_said_is_named_with_the_line_that_works() -> None:
    certificate = two_heads().certificate(classes=3)
    assert certificate.bits == float("inf")
    assert "the size of topic is not known" in str(certificate)
    assert "classes={'intent': 3, 'topic': 10}" in str(certificate)
    assert "countable" not in str(certificate)
    with pytest.raises(sn.errors.ConfigError, match=r"classes=\{'intent': 10, 'topic': 10\}"):
        two_heads().certificate()


@pytest.mark.parametrize(
    ("shield", "classes", "words"),
    [
        (two_heads(), {"intent": 3, "mood": 2}, r"one of each head \(intent, topic\)"),
        (two_heads(), {"intent": 1}, "Expected classes >= 2"),
        (embedder(), {"a": 8}, "Expected classes as a whole number"),
        (embedder(), None, "The number of dimensions is not known before the first answer"),
        (regression(), None, "The number of values is not known before the first answer"),
    ],
)
def test_sizes_that_fit_no_head_are_refused(shield, classes, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        shield.certificate(classes=classes)


def test_another_size_than_the_answers_had_is_refused_in_its_own_unit() -> None:
    shields = two_heads(), embedder()
    for shield in shields:
        shield(X)
    with pytest.raises(sn.errors.ConfigError, match="has answered 5 classes, not 6"):
        shields[0].certificate(classes={"intent": 3, "topic": 6})
    with pytest.raises(sn.errors.ConfigError, match="has answered 8 dimensions, not 9"):
        shields[1].certificate(classes=9)


@pytest.mark.parametrize(
    ("shield", "size"), [(embedder(), "8 dimensions"), (regression(), "8 values")]
)
def test_what_has_no_classes_is_counted_in_its_own_unit(shield, size) -> None:
    given = str(shield.certificate(classes=8))
    shield(X)
    assert given == str(shield.certificate())
    assert f"over {size}:" in given


def test_an_embedder_that_answers_another_width_is_told_in_dimensions() -> None:
    shield = sn.Shield(nn.Identity(), sn.ClipNorm(1.0), sn.GaussianNoise(0.1), outputs="embeddings")
    shield(X)
    with pytest.raises(sn.errors.AnswerError, match=r"Expected 6 dimensions .* got 5 dimensions"):
        shield(X[:, :5])


def test_a_detectors_certificate_says_that_the_number_of_boxes_is_unbounded() -> None:
    shield = sn.harden(Detector(), outputs={"scores": "binary_probabilities"})
    with pytest.raises(sn.errors.ConfigError, match="A detector answers as many boxes as it finds"):
        shield.certificate()
    shield(X)
    text = str(shield.certificate())
    assert "no bound: the model answers any number of boxes" in text
    assert "countable" not in text


def test_a_field_that_is_released_as_it_is_is_named() -> None:
    shield = sn.harden(TwoHeads(), outputs={"intent": "logits"}, also={"topic": ()})
    shield(X)
    assert "no bound: topic is released as it is" in str(shield.certificate())


@pytest.mark.parametrize(
    "settings",
    [
        {"outputs": {0: "logits", 1: "logits"}},
        {"outputs": {"0": "logits"}, "drop": (1,)},
        {"outputs": {"0": "logits"}, "drop": 1},
        {"outputs": {"0": "logits"}, "also": {1: ()}},
        {"outputs": {"0": "logits", "1": "logits"}, "axis": {0: -1, 1: -1}},
    ],
)
@pytest.mark.parametrize("make", [sn.harden, sn.Shield])
def test_numbers_as_names_of_fields_are_refused_with_the_names_that_work(make, settings) -> None:
    with pytest.raises(sn.errors.ConfigError, match="of a tuple are '0', '1'") as refused:
        make(TwoHeads(tuple), **settings)
    said = re.findall(r"Say (.*)\.$", str(refused.value))[0]
    fixed = {**settings, **eval(f"dict({said})")}  # noqa: S307  # our own line
    released = [part for part in sn.harden(TwoHeads(tuple), **fixed)(X) if part is not None]
    assert len(released) == (1 if "drop" in settings else 2)
