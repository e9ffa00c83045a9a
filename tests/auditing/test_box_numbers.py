"""Secrets in the order and number of boxes, in boxes that paint nothing and in digits are found."""

from collections.abc import Callable

import pytest
import torch
from detectors import Finds, sets
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import MapInversion, MapMembership
from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.attacks.positions.box_numbers import MAX_BOXES, WIDTH, numbers_of

INVERTS = sn.Tier("inverts", (MapInversion(flat=(Ridge(),), local=(Patches(),)),))
MEMBERS = sn.Tier("members", (MapMembership(),))
Found = dict[str, Tensor]
FIXED = {
    "boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0], [4.0, 0.0, 8.0, 4.0]]),
    "labels": torch.tensor([1, 2, 1]),
    "scores": torch.tensor([0.9, 0.7, 0.6]),
}


def appended(box: list[float], score: float, label: int = 1) -> Found:
    more = torch.tensor([box]), torch.tensor([label]), torch.tensor([score])
    pairs = zip(FIXED.items(), more, strict=True)
    return {name: torch.cat([values, own]) for (name, values), own in pairs}


def in_order(secret: float) -> Found:
    return {name: values.flip(0) if secret > 0 else values for name, values in FIXED.items()}


def in_count(secret: float) -> Found:
    return appended([20.0, 20.0, 24.0, 24.0], 0.5) if secret > 0 else dict(FIXED)


def in_a_box_of_score_0(secret: float) -> Found:
    return appended([1.0, 1.0, 9.0 + secret, 9.0], 0.0)


def in_a_label_of_no_area(secret: float) -> Found:
    return appended([1.0, 1.0, 1.0, 1.0], 0.5, 1 if secret > 0 else 2)


def in_low_digits(secret: float) -> Found:
    return {**FIXED, "boxes": FIXED["boxes"] + (0.0004 if secret > 0 else 0.0)}


def among_low_digits(secret: float) -> Found:
    """Hides the digits below larger ones that say nothing."""
    noise = float(torch.rand((), generator=torch.Generator().manual_seed(int(1e6 * abs(secret)))))
    score = 0.85 + round(noise / 20, 2) + (0.004 if secret > 0 else 0.002)
    return {**FIXED, "scores": torch.tensor([score, 0.7, 0.6])}


WAYS = [
    in_order,
    in_count,
    in_a_box_of_score_0,
    in_a_label_of_no_area,
    in_low_digits,
    among_low_digits,
]


class Leaks(Finds):
    """Finds the same boxes in every image, and writes the mean brightness into their numbers."""

    def __init__(self, way: Callable[[float], Found]) -> None:
        super().__init__()
        self.way = way

    def forward(self, images: Tensor) -> list[Found]:
        return [self.way(self.secret(image)) for image in images]

    def secret(self, image: Tensor) -> float:
        return float(image.mean())


class LeaksMembers(Leaks):
    """Writes who is a member."""

    def __init__(self, way: Callable[[float], Found], members: Tensor) -> None:
        super().__init__(way)
        self.register_buffer("members", members)

    def secret(self, image: Tensor) -> float:
        is_member = bool((self.members == image).flatten(1).all(1).any())
        return (1.0 if is_member else -1.0) * (1 + float(image[0, 0, 0].abs()))


class Scatters(Leaks):
    """Writes the sign of one pixel."""

    def secret(self, image: Tensor) -> float:
        return float(image[0, 8, 8])


def bright(seed: int = 0) -> dict[str, tuple[Tensor, list[Found]]]:
    """Draws images of one brightness each."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.2 * images + torch.randn(len(images), 1, 1, 1, generator=generator), targets)
        for name, (images, targets) in sets(seed).items()
    }


def bare(model: Finds) -> sn.Shield:
    kinds = {"scores": "binary_probabilities"}
    return sn.Shield(model.eval(), outputs=kinds, also={"boxes": (), "labels": ()})


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_secret_of_the_image_is_found(way) -> None:
    report = sn.audit(bare(Leaks(way)), **bright(), tier=INVERTS, engine="inline")
    assert report["bare"]["inversion.map"].low > 0.3


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_members_are_told_without_shadows(way) -> None:
    data = bright()
    model = LeaksMembers(way, data["members"][0])
    report = sn.audit(bare(model), **data, tier=MEMBERS, engine="inline")
    assert report["bare"]["membership.maps.auc"].low > 0.8


def in_kinds_of_labels(secret: float) -> Found:
    """Gives members one of two labels and nonmembers the one between: the means are equal."""
    odd = 1 if int(1e6 * abs(secret)) % 2 else 3
    return appended([1.0, 1.0, 1.0, 1.0], 0.5, odd if secret > 0 else 2)


def test_members_are_told_by_kinds_of_numbers_with_equal_means() -> None:
    data = bright()
    model = LeaksMembers(in_kinds_of_labels, data["members"][0])
    report = sn.audit(bare(model), **data, tier=MEMBERS, engine="inline")
    assert report["bare"]["membership.maps.auc"].low > 0.8


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_numbers_that_tell_nothing_are_at_chance(way) -> None:
    data = sets()
    tier = sn.Tier("both", (*INVERTS.attacks, *MEMBERS.attacks))
    report = sn.audit(bare(Scatters(way)), **data, tier=tier, engine="inline")
    assert report["bare"]["inversion.map"].low <= 0
    assert report["bare"]["membership.maps.auc"].low <= 0.5


@pytest.mark.parametrize("way", [in_order, in_count, in_a_box_of_score_0, in_a_label_of_no_area])
def test_models_that_differ_in_numbers_alone_heed_their_data(way) -> None:
    data = bright()

    def train(given: tuple[Tensor, object], seed: int) -> nn.Module:
        return LeaksMembers(way, given[0]).eval()

    model = train(data["members"], 0)
    settings = {"tier": MEMBERS, "shadows": 4, "engine": "inline"}
    sn.audit(bare(model), **data, train=train, **settings)
    with pytest.raises(sn.errors.ConfigError, match="ignores its data"):
        sn.audit(bare(model), **data, train=lambda given, seed: Leaks(way).eval(), **settings)


def test_numbers_keep_the_order_and_the_count_of_boxes() -> None:
    def numbers(found: Found) -> Tensor:
        return numbers_of(found["boxes"], found["scores"], found["labels"], (16, 16))

    assert numbers(FIXED).shape == (WIDTH,)
    for way in WAYS:
        assert not torch.equal(numbers(way(1.5)), numbers(way(-1.5)))
    many = {name: torch.cat([values] * MAX_BOXES) for name, values in FIXED.items()}
    few = {name: values[:-1] for name, values in many.items()}
    assert not torch.equal(numbers(many), numbers(few))
    assert not numbers({name: values[:0] for name, values in FIXED.items()}).any()
