"""An audit takes a segmentation to a verdict, and refuses a detector with the reason."""

from typing import Any

import pytest
import torch
from maps import Nudges, Shows, nudged, sets
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import MapInversion, MapMembership
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.reports.report import Report

MAPS = sn.Tier("maps", (MapInversion(local=(Patches(),)), MapMembership()))


@pytest.fixture(scope="module")
def report() -> Report:
    given: dict[str, Any] = sets()
    given["auxiliary"] = given["auxiliary"][0]  # images without masks
    model = Nudges(*given["members"])
    shields = {"rounded": sn.Shield(model, sn.Round(1), axis=1)}
    shields["labels"] = sn.Shield(model, sn.Label(), axis=1)
    return sn.audit(shields, **given, tier=MAPS, train=nudged, shadows=8, engine="inline")


def test_a_segmentation_is_measured_behind_each_shield(report) -> None:
    assert "almost nothing" not in report.title
    assert report["bare"]["inversion.map"].low > report["labels"]["inversion.map"].high
    assert report["bare"]["membership.maps.auc"].low > 0.8
    assert report["bare"]["membership.maps.auc"].threat.shadows == 8
    assert report["rounded"]["accuracy"].samples == 60


def test_the_gate_the_page_and_the_files_know_its_findings(report, tmp_path) -> None:
    limits = {"max_leakage": 0.1, "max_map_membership_auc": 0.9}
    verdict = str(report.passes(sn.Policy(limits)))
    assert "fail  rounded: inversion.map" in verdict
    assert "pass  labels: inversion.map" in verdict
    assert "membership.maps.auc" in verdict
    for name, words in (("page.html", "leakage of a map"), ("report.json", "inversion.map")):
        report.save(tmp_path / name)
        assert words in (tmp_path / name).read_text()
    report.save(tmp_path / "tests.xml", policy=sn.Policy(limits))
    assert "inversion.map" in (tmp_path / "tests.xml").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": lambda images, masks: (images, masks[:, :4])}, "label at every position"),
        ({"members": lambda images, masks: (images, masks + 1)}, "from 0 to 1"),
        ({"nonmembers": lambda images, masks: images}, "Expected labels at every position"),
        ({"nonmembers": lambda images, masks: (images, masks * 0 - 100)}, "at one position"),
    ],
    ids=["another shape", "unknown classes", "no masks", "all ignored"],
)
def test_masks_that_do_not_fit_are_refused(change, words) -> None:
    given: dict[str, Any] = sets()
    ((name, changed),) = change.items()
    given[name] = changed(*given[name])
    shield = sn.Shield(Nudges(*sets()["members"]), axis=1)
    with pytest.raises(sn.errors.DataError, match=words):
        sn.audit(shield, **given, tier=MAPS, shadows=0)


class Detects(nn.Module):
    """Finds as many boxes as an image is bright."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        counts = images.abs().sum((1, 2, 3)).long().remainder(4).tolist()
        return [
            {"scores": torch.full((count,), 0.9), "boxes": torch.ones(count, 4)} for count in counts
        ]


def test_a_detector_is_refused_with_the_reason() -> None:
    shield = sn.Shield(
        Detects(),
        sn.RoundTo(0.1),
        outputs={"scores": "values", "boxes": "values"},
        also={"boxes": (sn.RoundTo(1.0),)},
    )
    images = {name: part[0] for name, part in sets().items()}
    with pytest.raises(sn.errors.ShieldnetError, match="A detector's boxes are no rows"):
        sn.audit(shield, **images, tier=MAPS, shadows=0)


@pytest.mark.parametrize("defenses", [(), (sn.ClipNorm(3.0), sn.GaussianNoise(1.0))], ids=str)
def test_attacks_on_one_row_of_numbers_say_that_maps_are_more(defenses) -> None:
    attacks = sn.attacks.StraightThrough(), sn.attacks.JitterAveraging(), sn.attacks.TableLearning()
    shield = sn.Shield(Shows().eval(), *defenses, axis=1)
    report = sn.audit(shield, **sets(), tier=sn.Tier("rows", attacks), engine="inline")
    said = [line for line in report.untested if "answers at 64 positions" in line]
    assert len(said) >= 1
