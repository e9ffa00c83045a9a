"""Detectors are audited: their boxes are read as maps, by attackers who learn and who search."""

import copy
import math

import pytest
import torch
from detectors import SIDE, Finds, Nowhere, Remembers, hardened, sets, trained
from torch import Tensor, nn
from torch.utils.data import DataLoader

import shieldnet as sn
from shieldnet.attacks import MapInversion, MapMembership, MapProbing, answers
from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.attacks.positions.painting import BoxMap, Fields, RankMap

INVERTS = sn.Tier("inverts", (MapInversion(flat=(Ridge(),), local=(Patches(),)),))
MEMBERS = sn.Tier("members", (MapMembership(),), shadows=4)
ALL = Fields("scores", "boxes", "labels")


def values(report: sn.Report, name: str) -> dict[str, sn.Finding]:
    return {
        subject.name: finding
        for subject in report.subjects
        for finding in subject.findings
        if finding.name == name
    }


def test_images_are_read_from_boxes_and_less_behind_a_shield() -> None:
    report = sn.audit(hardened(Finds()), **sets(), tier=INVERTS, engine="inline")
    leaked = values(report, "inversion.map")
    assert leaked["bare"].low > 0.1
    assert leaked["shield"].high < leaked["bare"].low
    assert values(report, "r2.inversion.map")["bare"].low > 0.9
    assert values(report, "accuracy")["shield"].low > 0.9


def test_a_step_larger_than_the_boxes_is_said() -> None:
    none = sn.Tier("none", ())
    kinds = {"scores": "binary_probabilities", "boxes": "values"}
    model = Finds()
    shields = {
        step: sn.harden(
            model,
            outputs=kinds,
            also={"boxes": (sn.ClipRange(0.0, 1024.0), sn.RoundTo(float(step))), "labels": ()},
        )
        for step in ("1", "32")
    }
    report = sn.audit(shields, **sets(), tier=none, engine="inline")
    said = [line for line in report.untested if "with an area" in line]
    assert len(said) == 1
    assert said[0].startswith("boxes with an area behind 32: it leaves 100% of them without one")
    assert "(the model 0%)" in said[0]
    assert said[0] in str(report)


def test_they_are_searched_for_without_gradients() -> None:
    tier = sn.Tier("searches", (MapProbing(queries=16, pulls=(0.1,)), sn.attacks.MapSearch()))
    report = sn.audit(hardened(Finds()), **sets(), tier=tier, engine="inline")
    assert values(report, "inversion.search.map").keys() == {"bare", "shield"}
    assert any("no gradient" in line for line in report.untested)


def test_members_are_told_by_what_boxes_say_beside_shadows() -> None:
    data = sets()
    model = Remembers(*data["members"])
    report = sn.audit(hardened(model), **data, tier=MEMBERS, train=trained, engine="inline")
    auc = values(report, "membership.maps.auc")
    assert auc["bare"].low > 0.8
    assert values(report, "membership.maps.LiRA.auc")["bare"].low > 0.7


def test_a_detector_that_looks_at_nothing_gives_nothing_away() -> None:
    data = sets()
    both = sn.Tier("both", (*INVERTS.attacks, MapMembership(), MapProbing(queries=8)), shadows=4)

    def blind(data: object, seed: int) -> nn.Module:
        return Nowhere()

    report = sn.audit(hardened(Nowhere()), **data, tier=both, engine="inline")
    for name, chance in {
        "inversion.map": 0,
        "r2.inversion.map": 0,
        "inversion.search.map": 0,
        "membership.maps.auc": 0.5,
    }.items():
        for finding in values(report, name).values():
            assert finding.low <= chance <= finding.high, (name, str(finding))


def test_scores_alone_are_read_by_rank() -> None:
    data = sets()
    shield = sn.harden(
        Remembers(*data["members"]).eval(),
        outputs={"scores": "binary_probabilities"},
        drop=("boxes", "labels"),
    )
    report = sn.audit(shield, **data, tier=MEMBERS, train=trained, engine="inline")
    assert values(report, "membership.maps.auc")["bare"].low > 0.7
    assert report.subjects[1].certificate.cost.bits == math.inf


def test_a_dataset_of_images_and_targets_is_read() -> None:
    data = {name: list(zip(*part, strict=True)) for name, part in sets().items()}

    class Pairs(torch.utils.data.Dataset):
        def __init__(self, rows: list) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, row: int) -> tuple[Tensor, dict[str, Tensor]]:
            return self.rows[row]

    given = {name: Pairs(rows) for name, rows in data.items()}
    given["nonmembers"] = data["nonmembers"]  # a list of pairs
    given["auxiliary"] = DataLoader(
        given["auxiliary"], batch_size=8, collate_fn=lambda batch: tuple(zip(*batch, strict=True))
    )
    report = sn.audit(hardened(Finds()), **given, tier=INVERTS, engine="inline")
    plain = sn.audit(hardened(Finds()), **sets(), tier=INVERTS, engine="inline")
    assert report.hashes == plain.hashes
    assert str(values(report, "inversion.map")) == str(values(plain, "inversion.map"))


def test_tuples_of_images_and_targets_are_read_like_lists() -> None:
    pairs = {name: list(zip(*part, strict=True)) for name, part in sets().items()}
    collated = {name: tuple(zip(*rows, strict=True)) for name, rows in pairs.items()}
    use = sn.Tier("use", ())
    reports = [sn.audit(hardened(Finds()), **one, tier=use) for one in (collated, sets())]
    assert reports[0].hashes == reports[1].hashes


def test_neither_model_nor_targets_are_touched() -> None:
    data = sets()
    before = copy.deepcopy(data)
    sn.audit(hardened(Finds()), **data, tier=INVERTS, engine="inline")
    for name, (images, targets) in data.items():
        assert torch.equal(images, before[name][0])
        for one, other in zip(targets, before[name][1], strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_one_shield_of_boxes_alone_is_judged_beside_the_bare_model() -> None:
    model = Finds().eval()
    as_it_is = sn.Shield(
        model,
        outputs={"scores": "binary_probabilities", "boxes": "values"},
        also={"boxes": (sn.ClipRange(0.0, float(SIDE)), sn.RoundTo(8.0)), "labels": ()},
    )
    report = sn.audit(as_it_is, **sets(), tier=INVERTS, engine="inline")
    agreed = values(report, "agreement")
    assert agreed["bare"].value == 1
    assert agreed["shield"].value < 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images, targets: (images, targets[1:]), "a dict of boxes for each of the 60"),
        (
            lambda images, targets: (images, [{"boxes": torch.rand(4)}, *targets[1:]]),
            r"boxes of shape \(boxes, 4\).*row 0 of the members has shape \(4,\)",
        ),
        (
            lambda images, targets: (
                images,
                [{"boxes": torch.full((1, 4), torch.nan)}, *targets[1:]],
            ),
            r"finite; row 0 of the members has \[nan, nan",
        ),
        (
            lambda images, targets: (images, [*targets[:-1], {"boxes": torch.zeros(0, 4)}]),
            "labels beside the boxes",
        ),
        (
            lambda images, targets: (
                images,
                [{**targets[0], "labels": torch.ones(5).long()}, *targets[1:]],
            ),
            "a whole-number label for each box",
        ),
        (
            lambda images, targets: ([images[0][:, 1:], *images[1:]], targets),
            r"images of the members in one shape, got 2",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused(change, words) -> None:
    data = sets()
    with pytest.raises(sn.errors.DataError, match=words):
        sn.audit(hardened(Finds()), **{**data, "members": change(*data["members"])}, tier=INVERTS)


def test_a_label_that_no_true_box_has_is_wrong() -> None:
    data = {
        name: (images, [{**target, "labels": target["labels"] * 0 + 7} for target in targets])
        for name, (images, targets) in sets().items()
    }
    right, plain = (
        values(sn.audit(hardened(Finds()), **one, tier=sn.Tier("use", ())), "accuracy")["bare"]
        for one in (data, sets())
    )
    assert right.high < plain.low


def test_images_of_another_type_are_refused() -> None:
    data = sets()
    whole = {name: ((40 * x).clamp(0, 255).byte(), own) for name, (x, own) in data.items()}
    with pytest.raises(sn.errors.DataError, match="cannot read the images .torch.uint8"):
        sn.audit(hardened(Finds()), **whole, tier=INVERTS)


def test_arrays_of_numpy_are_read_like_tensors() -> None:
    arrays = {
        name: (images.numpy(), [{key: own.numpy() for key, own in t.items()} for t in targets])
        for name, (images, targets) in sets().items()
    }
    reports = [
        sn.audit(hardened(Finds()), **one, tier=INVERTS, engine="inline")
        for one in (arrays, sets())
    ]
    assert reports[0].hashes == reports[1].hashes


def test_the_bare_model_is_asked_as_the_shield_asks_it() -> None:
    class OneByOne(Finds):
        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            assert len(images) == 1
            return super().forward(images)

    report = sn.audit(hardened(OneByOne(), micro_batch=1), **sets(), tier=sn.Tier("use", ()))
    assert values(report, "agreement")["bare"].value == 1


def test_large_images_are_asked_about_in_small_batches(monkeypatch) -> None:
    sizes: set[int] = set()

    class Counts(Finds):
        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            sizes.add(len(images))
            return super().forward(images)

    monkeypatch.setattr(answers, "_NUMBERS", 4 * SIDE * SIDE)
    every = (*INVERTS.attacks, MapMembership(), MapProbing(queries=4, pulls=(0.1,)))
    data = {name: (images[:30], own[:30]) for name, (images, own) in sets().items()}
    sn.audit(hardened(Counts()), **data, tier=sn.Tier("every", every), engine="inline")
    assert max(sizes) == 4


def test_sets_without_images_or_targets_are_refused() -> None:
    data = sets()
    with pytest.raises(sn.errors.DataError, match="at least one row of members"):
        sn.audit(hardened(Finds()), **{**data, "members": ([], [])}, tier=INVERTS)
    alone = {**data, "nonmembers": data["nonmembers"][0]}
    with pytest.raises(sn.errors.DataError, match="labels at every position of the nonmembers"):
        sn.audit(hardened(Finds()), **alone, tier=MEMBERS, train=trained)


def test_what_is_not_measured_of_detectors_is_refused_by_name() -> None:
    data = sets()
    shield = hardened(Finds())
    with pytest.raises(sn.errors.ConfigError, match="not on boxes. Pass train as a function"):
        sn.audit(shield, **data, tier=MEMBERS, train=sn.Recipe(Finds, epochs=1))
    rest = {"outputs": {"scores": "binary_probabilities"}, "also": {}, "drop": ("boxes", "labels")}
    several = {"all": shield, "few": sn.harden(shield.model, **rest)}
    with pytest.raises(sn.errors.ConfigError, match="release the same fields"):
        sn.audit(several, **data, tier=INVERTS)
    with pytest.raises(sn.errors.AnswerError, match="true boxes: .*members=.images, targets."):
        sn.audit(shield, **{name: images for name, (images, _) in data.items()}, tier=INVERTS)

    class Masks(Finds):
        def _found(self, means: Tensor) -> dict[str, Tensor]:
            found = super()._found(means)
            return {**found, "masks": torch.zeros(len(found["boxes"]), 1, 2, 2)}

    kinds = {"scores": "binary_probabilities", "boxes": "values"}
    also = {"boxes": (), "labels": (), "masks": ()}
    with pytest.raises(sn.errors.AnswerError, match="also releases masks.*drop="):
        sn.audit(sn.Shield(Masks().eval(), outputs=kinds, also=also), **data, tier=INVERTS)
    classifier = sn.Shield(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).eval())
    with pytest.raises(sn.errors.DataError, match="Expected a detector"):
        sn.audit(classifier, **data, tier=INVERTS)


def test_boxes_are_painted_as_far_as_they_cover_a_cell() -> None:
    painting = BoxMap(ALL, (4, 4), (1, 2))
    image = {
        "boxes": torch.tensor([[0.0, 0.0, 1.5, 1.0], [0.0, 0.0, 4.0, 4.0]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.8, 0.5]),
    }
    shield = hardened(Finds())
    (map_,) = painting.answers([image], shield)
    assert map_.shape == (4, 4, 4)
    assert torch.allclose(map_.sum(-1), torch.ones(4, 4))
    assert map_[3, 3].tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0])
    assert map_[0, 0].tolist() == pytest.approx([0.1, 0.9 * 0.5 / 1.3, 0.9 * 0.8 / 1.3, 0.0])
    assert map_[0, 1, 0] == pytest.approx(0.5 * 0.6)
    truth = painting.truth(image["boxes"], painting.numbered(image["labels"]))
    assert truth[0].tolist() == [2, 1, 1, 1]
    nothing = {name: values[:0] for name, values in image.items()}
    assert painting.answers([nothing], shield)[0, ..., 0].min() == 1


def test_small_objects_stay_in_the_truth() -> None:
    painting = BoxMap(ALL, (64, 64), (1,))
    boxes = torch.tensor(
        [[10.2, 20.2, 10.8, 20.8], [40, 40, 40, 40], [31, 1, 33, 3], [63, 63, 70, 64]]
    )
    truth = painting.truth(boxes, torch.zeros(4).long())
    rows, columns = truth.nonzero().unbind(1)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (1, 16),
        (10, 5),
        (20, 20),
        (31, 31),
    ]
    among = torch.tensor([[0.0, 0.0, 64.0, 64.0], [10.2, 20.2, 10.8, 20.8]])
    assert painting.truth(among, torch.tensor([0, 1]))[10, 5] == 2


def test_without_boxes_the_surest_of_each_class_are_painted_first() -> None:
    painting = RankMap(Fields("scores", None, "labels"), (4, 4), (1, 2))
    image = {"labels": torch.tensor([2, 1, 2]), "scores": torch.tensor([0.3, 0.6, 0.7])}
    (map_,) = painting.answers([image], hardened(Finds()))
    assert map_[1, :3, 1].tolist() == pytest.approx([0.7, 0.3, 0.0])
    assert map_[0, :2, 1].tolist() == pytest.approx([0.6, 0.0])
    truth = painting.truth(torch.zeros(3, 4), painting.numbered(image["labels"]))
    assert truth.sum(1).tolist() == [1, 2, 0]
