"""Reports made by hand: what is tested with them is how they are judged, written and read."""

import math
from pathlib import Path

import torch

import shieldnet as sn
from shieldnet.core.statistics import Curve
from shieldnet.findings.finding import Exposed, Finding, Threat
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.reports.report import Report
from shieldnet.reports.subject import Subject

SAVED = Path(__file__).parent / "reports" / "saved" / "first.json"
"""A report of the first version, which must load for ever."""

GUARANTEE = sn.Guarantee(
    *(4.0, 1.0, 16, 100, 1e-5), scope="weights", run="0" * 32, premises=("the start is public",)
)


def finding(name: str, low: float, high: float, **more) -> Finding:
    settings = {"samples": 400, "baseline": 0.0, "threat": Threat(), "source": "by hand", **more}
    return Finding(name, (low + high) / 2, low, high, **settings)


def subject(name: str, leak: float, bits: float, **more) -> Subject:
    findings = (
        finding("accuracy", 0.92, 0.96),
        finding("inversion", leak - 0.02, leak + 0.02),
        finding("reidentification", 0.01, 0.02, ceiling=min(1.0, 2**bits / 500)),
        finding("membership.auc", 0.52, 0.58, baseline=0.5),
    )
    settings = {
        "certificate": sn.Certificate(f"model -> {name}", 10, PrivacyCost(bits=bits)),
        "findings": findings,
        "untested": ("timing and other side channels",),
        "features": {"leak map": torch.rand(8, 8), "null map": torch.rand(8, 8)},
        "curves": {
            "membership": Curve((0.01, 0.1, 1.0), (0.02, 0.2, 1.0), (0, 0.1, 0.9), (0.1, 0.3, 1))
        },
        "exposed": (Exposed("membership.auc", "members", (7, 3), (0.01, 0.02), "a share"),),
        "durations_s": {"inversion": 1.5},
        "configuration": "abc",
    }
    return Subject(name=name, **{**settings, **more})


def made(*subjects: Subject, **more) -> Report:
    every = subjects or (subject("bare", 0.6, math.inf), subject("balanced", 0.03, 5.33))
    settings = {
        "title": "Digits",
        "seed": 0,
        "duration_s": 2.0,
        "environment": {"tier": "quick", "shieldnet": "0.1.0"},
        "hashes": {"model": "m", "members": "a", "nonmembers": "b"},
        "kind": "logits",
    }
    return Report(subjects=every, **{**settings, **more})
