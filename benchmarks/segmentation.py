"""Measures what maps of a segmentation tell of their images and of who trained it, by defense.

python benchmarks/segmentation.py
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch
from results import write_section
from tabulate import tabulate
from torch import Tensor

import shieldnet as sn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.segmentation_audit import shaded_digits, trained
from shieldnet.reports.subject import Subject

NAME = "segmentation"
MEMBERS, NONMEMBERS, OWN = 40, 200, 300
STEPS, SHADOWS = 500, 8
CHAINS: dict[str, tuple[sn.Defense, ...]] = {
    "Round(2)": (sn.Round(2),),
    "Round(1)": (sn.Round(1),),
    "Confidence(4)": (sn.Confidence(4),),
    "Coarsen(2), Round(1)": (sn.Coarsen(2), sn.Round(1)),
    "Coarsen(4), Round(1)": (sn.Coarsen(4), sn.Round(1)),
    "Label": (sn.Label(),),
    "GaussianNoise(2)": (sn.GaussianNoise(2.0),),
    "GaussianNoise(8)": (sn.GaussianNoise(8.0),),
}
COLUMNS = (
    "accuracy",
    "inversion.map",
    "r2.inversion.map",
    "white_box.inversion.map",
    "membership.maps.auc",
)
QUERIES = 64
AVERAGED = (f"averaging.map.{QUERIES}", f"membership.maps.averaged.{QUERIES}")


def mean_iou(predicted: Tensor, truth: Tensor) -> float:
    """Averages over both classes what prediction and truth share of what either covers."""
    pairs = [(predicted == one, truth == one) for one in (0, 1)]
    return sum(float((p & t).sum() / (p | t).sum()) for p, t in pairs) / len(pairs)


def averaged(subject: Subject, column: str) -> str:
    """Writes what the means of many answers tell; "" of shields that always answer the same."""
    return next((str(one) for one in subject.findings if one.name == column), "")


def main() -> None:
    """Runs the audit and writes its table."""
    started = time.process_time()
    images, masks = shaded_digits()
    ends = (MEMBERS, MEMBERS + NONMEMBERS, MEMBERS + NONMEMBERS + OWN)
    parts = [slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2])]
    members, nonmembers, own = ((images[part], masks[part]) for part in parts)
    train = partial(trained, steps=STEPS)
    model = train(members, 0)
    shields = {name: sn.Shield(model, *chain, axis=1) for name, chain in CHAINS.items()}
    attacks = (
        sn.attacks.MapInversion(),
        sn.attacks.MapSearch(),
        sn.attacks.MapMembership(),
        sn.attacks.PositionAveraging(QUERIES),
    )
    tier = sn.Tier("maps", attacks)
    report = sn.audit(
        shields,
        members=members,
        nonmembers=nonmembers,
        auxiliary=own[0],
        tier=tier,
        train=train,
        shadows=SHADOWS,
        engine="inline",
    )
    shields = {"bare": sn.Shield(model, axis=1), **shields}
    rows = [
        [
            name,
            f"{mean_iou(shield(nonmembers[0]).argmax(1), nonmembers[1]):.3f}",
            *(str(report[name][column]) for column in COLUMNS),
            report[name]["membership.maps.auc"].source,
            *(averaged(report[name], column) for column in AVERAGED),
        ]
        for name, shield in shields.items()
    ]
    head = ["", "mean IoU", "pixels right", "leakage", "R2", "white box", "membership AUC", "by"]
    head += [f"leakage, {QUERIES} answers", f"membership AUC, {QUERIES} answers"]
    text = (
        f"{MEMBERS} members, {NONMEMBERS} nonmembers, {OWN} images of the adversary's without "
        f"masks, {SHADOWS} shadows; {time.process_time() - started:.0f} CPU s. Leakage is beyond "
        "the released labels, R2 over the mean image; white box: a search with the model. Of "
        f"shields with noise: by the means of {QUERIES} answers, without shadows.\n\n"
        f"{tabulate(rows, head, tablefmt='github', disable_numparse=True)}"
    )
    write_section(NAME, "python benchmarks/segmentation.py", text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
