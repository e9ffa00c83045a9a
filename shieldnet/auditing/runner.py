"""Plays every attack against one shield, or reads what it found when it was played before."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from shieldnet.attacks import Attack, Game
from shieldnet.auditing.ceilings import with_ceilings
from shieldnet.checks.utility import agreement, utility
from shieldnet.core.randomness import noise_about, replayed_noise
from shieldnet.core.statistics import Curve
from shieldnet.findings.finding import Exposed, Finding, NotApplicable, Outcome
from shieldnet.findings.metrics import Metrics
from shieldnet.reports.report import BARE
from shieldnet.reports.subject import Subject
from shieldnet.running.store import Cache, fingerprint, read_text_array, text_array

ALWAYS_UNTESTED = (
    "timing and other side channels",
    "callers who pool their answers over time, and attacks that nobody here has thought of",
)
"""What this version cannot test; every report says so."""


def played(
    name: str,
    game: Game,
    attacks: Sequence[Attack],
    cache: Cache | None,
    with_examples: int,
    tell: Callable[[str], object],
) -> Subject:
    """Plays all attacks against one shield."""
    findings: list[Finding] = [] if game.blind is None else [game.blind]
    features: dict[str, Tensor] = {}
    reconstructions: Tensor | None = None
    untested: list[str] = []
    curves: dict[str, Curve] = {}
    exposed: list[Exposed] = []
    durations_s: dict[str, float] = {}
    with replayed_noise(game.seed):
        findings += list(utility(game, untested))
        for attack in attacks:
            words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(attack).__name__).lower()
            tell(f"{name}: {words}")
            begun = time.monotonic()
            outcome = _outcome(attack, game, words, cache, with_examples)
            durations_s[words] = durations_s.get(words, 0.0) + time.monotonic() - begun
            findings += outcome.findings
            features |= {
                feature: values
                for feature, values in outcome.features.items()
                if with_examples or not feature.startswith("class image ")
            }
            untested += outcome.untested
            curves |= outcome.curves
            exposed += outcome.exposed
            if outcome.reconstructions is not None:
                reconstructions = outcome.reconstructions
        if name == BARE and {"recovered", "leak map", "null map"} <= features.keys():
            try:
                findings.append(agreement(features, game))
            except NotApplicable as reason:
                untested.append(f"attribution.rank_correlation: {reason}")
    copies = 1 if game.canaries is None else game.canaries.copies
    return Subject(
        name=name,
        certificate=game.shield.certificate(),
        findings=with_ceilings(findings, game.guarantee, copies),
        untested=(*untested, *ALWAYS_UNTESTED),
        features=features,
        reconstructions=reconstructions,
        curves=curves,
        exposed=tuple(exposed),
        durations_s=durations_s,
        configuration=game.shield.settings.digest(),
    )


def _outcome(
    attack: Attack, game: Game, words: str, cache: Cache | None, with_examples: int
) -> Outcome:
    """Plays one attack, or reads what it found when it was played before.

    Nothing is kept of a record that the report does not show.
    """
    seen = game if attack.needs_shadows else game.without_shadows()
    key = "" if cache is None else _key(attack, seen, with_examples)
    if cache is not None and (kept := cache.get(key)) is not None:
        return _unpacked(kept)
    try:
        with noise_about(repr(attack)):
            outcome = attack(seen)
        named = (finding.name for finding in outcome.findings)
        Metrics(attack.metrics).require(named, type(attack).__name__)
    except NotApplicable as reason:
        outcome = Outcome(untested=(f"{words}: {reason}",))
    drawn = outcome.reconstructions
    shown = None if drawn is None or not with_examples else drawn[:with_examples].float()
    outcome = replace(outcome, reconstructions=shown)
    if cache is not None:
        cache.put(key, _packed(outcome))
    return outcome


def _key(attack: Attack, game: Game, with_examples: int) -> str:
    sets = (game.members, game.nonmembers, game.auxiliary)
    return fingerprint(
        attack,
        game.shield,
        sets,
        (game.seed, game.columns, game.sensitive, game.groups, game.canaries),
        game.shadows,
        with_examples,
        None if game.blind is None else asdict(game.blind),
        game.guarantee,
    )


def _packed(outcome: Outcome) -> dict[str, NDArray[Any]]:
    arrays = {f"feature {name}": values.numpy() for name, values in outcome.features.items()}
    if outcome.reconstructions is not None:
        arrays["reconstructions"] = outcome.reconstructions.numpy()
    document = {
        "findings": [asdict(finding) for finding in outcome.findings],
        "untested": outcome.untested,
        "curves": {name: asdict(curve) for name, curve in outcome.curves.items()},
        "exposed": [asdict(one) for one in outcome.exposed],
    }
    return {**arrays, "document": text_array(document)}


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> Outcome:
    document = read_text_array(arrays["document"])
    shown = arrays.get("reconstructions")
    return Outcome(
        findings=tuple(Finding.read(one) for one in document["findings"]),
        features={
            name.removeprefix("feature "): torch.from_numpy(values)
            for name, values in arrays.items()
            if name.startswith("feature ")
        },
        reconstructions=None if shown is None else torch.from_numpy(shown),
        untested=tuple(document["untested"]),
        curves={name: Curve.read(one) for name, one in document["curves"].items()},
        exposed=tuple(Exposed.read(one) for one in document["exposed"]),
    )
