"""Runs every attack and check against every shield and gathers what they found."""

import math
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from torch import Tensor, nn

from shieldnet._validate import whole
from shieldnet.attacks import (
    Attack,
    Averaging,
    Game,
    Inversion,
    JitterAveraging,
    Membership,
    Reidentification,
    TableLearning,
)
from shieldnet.attacks.base import in_batches
from shieldnet.auditing.report import BARE, Report, Subject
from shieldnet.checks import Attribution, Masking
from shieldnet.data import Examples, as_examples, raw_bytes, require_disjoint
from shieldnet.errors import ConfigError, DataError, ShieldnetError
from shieldnet.finding import Finding, NotApplicable, Threat
from shieldnet.randomness import replayed_noise
from shieldnet.shield import Shield
from shieldnet.statistics import Interval, proportion, rank_correlation

ATTACKS: tuple[Attack, ...] = (
    Inversion(),
    Averaging(),
    JitterAveraging(),
    TableLearning(),
    Reidentification(),
    Membership(),
    Attribution(),
    Masking(),
)
"""What an audit runs, in this order."""

ALWAYS_UNTESTED = (
    "membership with shadow models (LiRA, RMIA), which finds more",
    "extraction of the model, attribute inference, class inversion",
    "timing and other side channels",
)
"""What this version cannot test; every report says so."""


def audit(
    shield: Shield | Mapping[str, Shield],
    *,
    members: object,
    nonmembers: object,
    auxiliary: object = None,
    columns: Sequence[str] = (),
    title: str = "",
    seed: int = 0,
    with_examples: int = 0,
    progress: bool | None = None,
) -> Report:
    """Attacks a shield, or several of one model by name, and the bare model beside it.

    members: (inputs, labels) that trained the model; nonmembers: that it never saw, of the same
    kind; auxiliary: what the adversary owns, without which nothing can be inverted. Any of them may
    be a torch Dataset. columns: names of a table's columns. with_examples: how many nonmembers the
    report shows as pictures, next to what the adversary makes of them; 0 keeps every record out.
    progress: show a bar; by default only on a terminal.

    On a machine with busy neighbors, set OMP_WAIT_POLICY=PASSIVE before torch is imported (the
    command line does): torch's waiting threads spin, and an attack of 7 s took more than 200 s.

    The same seed gives the same report. Nothing is released and the model is not touched.
    Errors: DataError for sets that are empty, too small, of different shape or overlapping.
    """
    start = time.monotonic()
    whole("seed", seed, low=0, high=2**63 - 1)
    whole("with_examples", with_examples, low=0)
    shields = _with_bare(shield)
    _require_classifier(shields[BARE])
    sets = _checked_sets(members, nonmembers, auxiliary)
    names = _column_names(columns, sets["nonmembers"].inputs)
    _try_once(shields[BARE], sets["nonmembers"])
    _require_classifier(shields[BARE])
    subjects: list[Subject] = []
    with replayed_noise(seed), _Bar(len(shields) * len(ATTACKS), progress) as bar:
        for name, one in shields.items():
            game = Game(
                one,
                sets["members"],
                sets["nonmembers"],
                sets.get("auxiliary"),
                seed=seed,
                columns=names,
            )
            subjects.append(_subject(name, game, bar, with_examples))
    bare = shields[BARE].model
    return Report(
        title=title or f"Audit of {type(bare).__name__}",
        subjects=tuple(subjects),
        seed=seed,
        duration_s=time.monotonic() - start,
        columns=names,
        environment=_environment(),
        hashes={"model": _model_hash(bare)}
        | {name: examples.fingerprint() for name, examples in sets.items()},
        inputs=sets["nonmembers"].inputs[:with_examples].float() if with_examples else None,
    )


def _subject(name: str, game: Game, bar: "_Bar", with_examples: int) -> Subject:
    findings = list(_utility(game))
    features: dict[str, Tensor] = {}
    reconstructions: Tensor | None = None
    untested: list[str] = []
    for attack in ATTACKS:
        words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(attack).__name__).lower()
        bar.step(f"{name}: {words}")
        try:
            outcome = attack(game)
        except NotApplicable as reason:
            untested.append(f"{words}: {reason}")
            continue
        findings += outcome.findings
        features |= outcome.features
        untested += outcome.untested
        if outcome.reconstructions is not None and with_examples:
            reconstructions = outcome.reconstructions[:with_examples].float()
    if name == BARE and {"recovered", "leak map", "null map"} <= features.keys():
        try:
            findings.append(_agreement(features, game))
        except NotApplicable as reason:
            untested.append(f"attribution.rank_correlation: {reason}")
    return Subject(
        name=name,
        certificate=game.shield.certificate(),
        findings=tuple(findings),
        untested=(*untested, *ALWAYS_UNTESTED),
        features=features,
        reconstructions=reconstructions,
    )


def _utility(game: Game) -> Iterator[Finding]:
    """Counts how often the released winner is right, and how often it is the model's."""
    labels = game.nonmembers.require_labels(game.classes)
    given = game.ask(game.nonmembers).distribution.argmax(-1)
    count = len(labels)
    for name, truth in (("accuracy", labels), ("agreement", game.model_labels(game.nonmembers))):
        yield Finding.of(
            name,
            proportion(int((given == truth).sum()), count),
            samples=count,
            baseline=float(truth.bincount().max()) / count,
            threat=Threat(),
            source="the released winner on nonmembers",
        )


def _agreement(features: dict[str, Tensor], game: Game) -> Finding:
    """Compares the leak map with what the best decoder recovered, feature by feature."""
    varies = features["null map"].flatten() > 1e-3 * features["null map"].max()
    maps = {name: values.flatten()[varies].double() for name, values in features.items()}
    value = rank_correlation(maps["recovered"], maps["leak map"])
    count = int(varies.sum())
    if count < 4 or not math.isfinite(value):
        raise NotApplicable("it takes four features that vary, and maps that do")
    # Fisher's transform; 1.06 is the variance factor for ranks (Fieller, Hartley, Pearson 1957).
    center, reach = np.arctanh(min(value, 1 - 1e-9)), 1.96 * np.sqrt(1.06 / max(count - 3, 1))
    return Finding.of(
        "attribution.rank_correlation",
        Interval(value, float(np.tanh(center - reach)), float(np.tanh(center + reach))),
        samples=count,
        baseline=rank_correlation(maps["recovered"], maps["null map"]),
        threat=Threat(auxiliary=len(game.owned()), white_box=True),
        source="Spearman of leak map and recovered share; baseline: plain variance",
    )


def _with_bare(shield: Shield | Mapping[str, Shield]) -> dict[str, Shield]:
    shields = {"shield": shield} if isinstance(shield, Shield) else shield
    named = isinstance(shields, Mapping) and all(
        isinstance(one, Shield) for one in shields.values()
    )
    if not (named and shields):
        raise ConfigError("Expected a Shield, or a dict of Shields by name.")
    first = next(iter(shields.values()))
    if any(one.model is not first.model for one in shields.values()):
        raise ConfigError("Expected shields around one model; audit another model by itself.")
    if BARE in shields:
        raise ConfigError(f"The name {BARE} is kept for the undefended model.")
    bare = {BARE: first.bare()}
    # The bare model audited alone is not measured twice; among others it keeps its name, so that
    # the gate sees it.
    alone = len(shields) == 1 and not first.chain.stages
    return bare if alone else bare | dict(shields)


def _try_once(bare: Shield, examples: Examples) -> None:
    """Answers one row, so that a model that cannot read the data is told from a defect of ours."""
    try:
        in_batches(bare, examples.inputs[:1])
    except ShieldnetError:
        raise
    except Exception as unreadable:
        raise DataError(
            f"The model cannot read the {examples.name} ({examples.inputs.dtype}, shape "
            f"{tuple(examples.inputs.shape)}): {type(unreadable).__name__}: {unreadable}"
        ) from unreadable


def _require_classifier(bare: Shield) -> None:
    kind = bare.chain.layout.kind
    _, positions = bare.sizes or (0, ())  # asked again with the first answer
    if kind in ("values", "embeddings") or math.prod(positions) > 1:
        what = kind if math.prod(positions) == 1 else f"{kind} at {math.prod(positions)} positions"
        raise ConfigError(
            f"An audit measures answers of one row of classes, the model gives {what}. Its "
            "certificate is proven all the same: shield.certificate()."
        )


def _checked_sets(members: object, nonmembers: object, auxiliary: object) -> dict[str, Examples]:
    given = {"members": members, "nonmembers": nonmembers, "auxiliary": auxiliary}
    sets = {name: as_examples(value, name) for name, value in given.items() if value is not None}
    for name in ("members", "nonmembers"):
        if name not in sets:
            raise DataError(f"Expected {name} as (inputs, labels), got None.")
    pairs = [("members", "nonmembers"), ("auxiliary", "nonmembers"), ("auxiliary", "members")]
    for one, other in pairs:
        if one in sets:
            require_disjoint(sets[one], sets[other])
    return sets


def _column_names(columns: Sequence[str], inputs: Tensor) -> tuple[str, ...]:
    if inputs.dim() != 2:
        if columns:
            shape = tuple(inputs.shape)
            raise ConfigError(f"Only a table has columns; the inputs have shape {shape}.")
        return ()
    width = inputs.shape[1]
    if columns and len(columns) != width:
        raise ConfigError(f"Expected {width} column names, got {len(columns)}.")
    return tuple(columns) or tuple(f"column {place}" for place in range(width))


def _model_hash(model: nn.Module) -> str:
    digest = sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(raw_bytes(value))
    return digest.hexdigest()


def _environment() -> dict[str, str]:
    versions = {}
    for package in ("shieldnet", "torch", "numpy", "captum"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"python": platform.python_version(), "platform": platform.platform(), **versions}


class _Bar:
    """Shows how far the audit is, on a terminal or when asked."""

    def __init__(self, steps: int, progress: bool | None) -> None:
        from tqdm import tqdm

        hidden = None if progress is None else not progress
        self._bar = tqdm(total=steps, disable=hidden, leave=False, unit="step")
        self._begun = False

    def step(self, words: str) -> None:
        if self._begun:
            self._bar.update()
        self._begun = True
        self._bar.set_description(words)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
