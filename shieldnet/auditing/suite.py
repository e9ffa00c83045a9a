"""Runs every attack and check against every shield and gathers what they found."""

import logging
import math
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shieldnet._validate import choice, whole
from shieldnet.attacks import Attack, Game
from shieldnet.attacks.attribute import places_of
from shieldnet.attacks.base import Behind, in_batches
from shieldnet.attacks.blind import blind_finding
from shieldnet.attacks.shadows import FEWEST, Order, Train, trained
from shieldnet.auditing.report import BARE, Report, Subject
from shieldnet.auditing.tiers import Tier, as_tier, estimate_s, told
from shieldnet.cache import Cache, cache_in, fingerprint, read_text_array, text_array
from shieldnet.canaries import Planted
from shieldnet.data import Canaries, Examples, Group, as_examples, raw_bytes, require_disjoint
from shieldnet.engine import ENGINES, run
from shieldnet.errors import ConfigError, DataError, ShieldnetError
from shieldnet.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.randomness import noise_about, replayed_noise
from shieldnet.shield import Shield
from shieldnet.statistics import Interval, proportion, rank_correlation, saved_share

ALWAYS_UNTESTED = (
    "timing and other side channels",
    "callers who pool their answers over time, and attacks that nobody here has thought of",
)
"""What this version cannot test; every report says so."""

_MOST_VALUES = 20  # of a grouping: more are no groups

_log = logging.getLogger("shieldnet")


def audit(
    shield: Shield | Mapping[str, Shield],
    *,
    members: object,
    nonmembers: object,
    auxiliary: object = None,
    columns: Sequence[str] = (),
    sensitive: Sequence[str] = (),
    groups: Mapping[str, tuple[object, object]] | None = None,
    canaries: Canaries | Planted | None = None,
    train: Train | None = None,
    shadows: int | None = None,
    tier: str | Tier = "standard",
    engine: str | None = None,
    workers: int | None = None,
    cache: str | Path | None = None,
    title: str = "",
    seed: int = 0,
    with_examples: int = 0,
    progress: bool | None = None,
) -> Report:
    """Attacks a shield, or several of one model by name, and the bare model beside it.

    members: (inputs, labels) that trained the model; nonmembers: that it never saw, of the same
    kind; auxiliary: what the adversary owns, without which nothing can be inverted. Any of them may
    be a torch Dataset. columns: names of a table's columns; sensitive: those of them that somebody
    may want to learn. groups: subgroups to look at by themselves, ``{"sex": (of the members, of the
    nonmembers)}``, a value a record. canaries: from ``plant_canaries``.

    train: how the model was trained, ``train((inputs, labels), seed) -> model`` or a ``Recipe``:
    shadow models are trained so. Without it small reference models stand for them, the weaker form.
    shadows: how many; by default the tier's, 0 for none.
    tier: ``"quick"`` (about ten seconds), ``"standard"`` (about a minute), ``"full"`` (minutes to
    hours), or a ``Tier`` of your own attacks. How long it takes is logged before it starts.

    engine: ``"inline"``, ``"processes"``, ``"ray"`` or ``"dask"``; by default processes, but inline
    for the quick tier and for what cannot be sent. workers: by default one for each core. cache: a
    folder where results are kept under a fingerprint of all that they depend on: the same audit
    goes on where it was stopped. with_examples: how many nonmembers the report shows as pictures,
    next to what the adversary makes of them; 0 keeps every record out. progress: show a bar; by
    default only on a terminal.

    On a machine with busy neighbors, set OMP_WAIT_POLICY=PASSIVE before torch is imported (the
    command line does): torch's waiting threads spin, and an attack of 7 s took more than 200 s.

    The same seed gives the same report, whatever the engine. Nothing is released and the model is
    not touched.
    Errors: DataError for sets that are empty, too small, of different shape or overlapping;
    ConfigError for settings, and for a ``train`` that returns no model or ignores its seed.
    """
    start = time.monotonic()
    whole("seed", seed, low=0, high=2**63 - 1)
    whole("with_examples", with_examples, low=0)
    chosen = as_tier(tier)
    count = _shadow_count(chosen, shadows)
    shields = _with_bare(shield)
    bare = shields[BARE]
    _require_auditable(bare)
    sets = _checked_sets(members, nonmembers, auxiliary)
    names = _column_names(columns, sets["nonmembers"].inputs)
    if isinstance(sensitive, str):
        raise ConfigError(f"Expected sensitive as names of columns: sensitive=({sensitive!r},).")
    for name in sensitive:
        places_of(names, name)
    planted = _canaries(canaries, sets)
    _try_once(bare, sets["nonmembers"])
    _require_auditable(bare)
    where = _engine(engine, chosen, bare)
    kept = cache_in(cache)
    pieces = math.ceil(count / 8) if train is None else count
    with _Bar(len(shields) * len(chosen.attacks) + pieces, progress) as bar:
        expected = _announce(chosen, shields, sets, count)
        bar.step(f"{chosen.name}, {expected}")
        game = Game(
            bare,
            sets["members"],
            sets["nonmembers"],
            sets.get("auxiliary"),
            seed=seed,
            columns=names,
            sensitive=tuple(sensitive),
            groups=_groups(groups, sets),
            canaries=planted,
            blind=blind_finding(sets["members"], sets["nonmembers"], seed),
        )
        skipped: list[str] = []
        if count and any(attack.needs_shadows for attack in chosen.attacks):
            try:
                order = Order(
                    train,
                    count,
                    bare,
                    sets["members"],
                    sets["nonmembers"],
                    sets.get("auxiliary"),
                    planted,
                    seed,
                )
                game = replace(
                    game,
                    shadows=trained(
                        order, engine=where, workers=workers, cache=kept, done=bar.advance
                    ),
                )
            except NotApplicable as reason:
                skipped.append(f"membership with shadow models: {reason}")
        tell: Callable[[str], object] = bar.step if where == "inline" else _silent
        jobs = [
            (
                _subject,
                (name, replace(game, shield=one), chosen.attacks, kept, with_examples, tell),
            )
            for name, one in shields.items()
        ]
        per_subject = 0 if where == "inline" else len(chosen.attacks)
        subjects = run(jobs, engine=where, workers=workers, done=lambda: bar.advance(per_subject))
    return Report(
        title=title or f"Audit of {type(bare.model).__name__}",
        subjects=tuple(replace(one, untested=(*skipped, *one.untested)) for one in subjects),
        seed=seed,
        duration_s=time.monotonic() - start,
        columns=names,
        environment=_environment() | {"tier": chosen.name, "engine": where},
        hashes={"model": _model_hash(bare.model)}
        | {name: examples.fingerprint() for name, examples in sets.items()},
        inputs=sets["nonmembers"].inputs[:with_examples].float() if with_examples else None,
    )


def _subject(
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
    with replayed_noise(game.seed):
        findings += list(_utility(game, untested))
        for attack in attacks:
            words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(attack).__name__).lower()
            tell(f"{name}: {words}")
            outcome = _outcome(attack, game, words, cache)
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


def _outcome(attack: Attack, game: Game, words: str, cache: Cache | None) -> Outcome:
    """Plays one attack, or reads what it found when it was played before."""
    seen = game if attack.needs_shadows else replace_keeping(game, shadows=None)
    key = "" if cache is None else _key(attack, seen)
    if cache is not None and (kept := cache.get(key)) is not None:
        return _unpacked(kept)
    try:
        with noise_about(repr(attack)):
            outcome = attack(seen)
    except NotApplicable as reason:
        outcome = Outcome(untested=(f"{words}: {reason}",))
    if cache is not None:
        cache.put(key, _packed(outcome))
    return outcome


def replace_keeping(game: Game, shadows: None) -> Game:
    """Returns the game without shadows, with the answers that were asked for so far."""
    bare = replace(game, shadows=shadows)
    bare._kept.update(game._kept)
    bare._labels.update(game._labels)
    return bare


def _key(attack: Attack, game: Game) -> str:
    sets = (game.members, game.nonmembers, game.auxiliary)
    return fingerprint(
        attack,
        game.shield,
        sets,
        (game.seed, game.columns, game.sensitive, game.groups, game.canaries),
        game.shadows,
        None if game.blind is None else asdict(game.blind),
    )


def _packed(outcome: Outcome) -> dict[str, np.ndarray]:
    arrays = {f"feature {name}": values.numpy() for name, values in outcome.features.items()}
    if outcome.reconstructions is not None:
        arrays["reconstructions"] = outcome.reconstructions.numpy()
    document = {
        "findings": [asdict(finding) for finding in outcome.findings],
        "untested": outcome.untested,
    }
    return {**arrays, "document": text_array(document)}


def _unpacked(arrays: Mapping[str, np.ndarray]) -> Outcome:
    document = read_text_array(arrays["document"])
    shown = arrays.get("reconstructions")
    return Outcome(
        findings=tuple(
            Finding(**{**one, "threat": Threat(**one["threat"])}) for one in document["findings"]
        ),
        features={
            name.removeprefix("feature "): torch.from_numpy(values)
            for name, values in arrays.items()
            if name.startswith("feature ")
        },
        reconstructions=None if shown is None else torch.from_numpy(shown),
        untested=tuple(document["untested"]),
    )


def _silent(words: str) -> None:
    """Tells nobody: a worker has no bar."""


def _shadow_count(tier: Tier, given: int | None) -> int:
    if given is None:
        return tier.shadows
    count = whole("shadows", given, low=0)
    if 0 < count < FEWEST:
        raise ConfigError(
            f"Expected at least {FEWEST} shadows, or 0 for none; got {count}. "
            "Fewer say nothing of a single record."
        )
    return count


def _engine(engine: str | None, tier: Tier, bare: Shield) -> str:
    """Returns where the work runs: processes where they pay and where the model can be sent."""
    if engine is not None:
        return choice("engine", engine, ENGINES)
    tensors = (*bare.model.parameters(), *bare.model.buffers())
    if tier.name == "quick" or any(one.device.type != "cpu" for one in tensors):
        return "inline"
    import cloudpickle

    try:
        cloudpickle.dumps(bare.model)
    except Exception:  # whatever an object's own reduction raises: it stays here
        return "inline"
    return "processes"


def _announce(
    tier: Tier, shields: Mapping[str, Shield], sets: Mapping[str, Examples], shadows: int
) -> str:
    """Logs how long it will take, and returns that in words."""
    begun = time.monotonic()
    probe = sets["nonmembers"].inputs[:256]
    in_batches(shields[BARE], probe)
    rows = sum(len(one) for one in sets.values())
    ask_s = (time.monotonic() - begun) * rows / len(probe)
    seconds = estimate_s(
        tier,
        shields=[not one.deterministic for one in shields.values()],
        rows=rows,
        features=probe[0].numel(),
        ask_s=ask_s,
    )
    words = told(seconds)
    with_shadows = f", {shadows} shadows (their training comes on top)" if shadows else ""
    _log.info(
        "%s audit: %d attacks on %d shields%s; %s",
        tier.name,
        len(tier.attacks),
        len(shields),
        with_shadows,
        words,
    )
    return words


def _canaries(given: object, sets: Mapping[str, Examples]) -> Canaries | None:
    if given is None:
        return None
    canaries = given.canaries if isinstance(given, Planted) else given
    if not isinstance(canaries, Canaries):
        raise ConfigError(
            f"Expected canaries as plant_canaries returns them, got {type(given).__name__}."
        )
    for one in (canaries.planted, canaries.held_out):
        for name in ("members", "nonmembers"):
            require_disjoint(sets[name], one)
    return canaries


def _groups(
    given: Mapping[str, tuple[object, object]] | None, sets: Mapping[str, Examples]
) -> tuple[Group, ...]:
    """Makes a group of every value of every grouping."""
    groups: list[Group] = []
    for name, pair in (given or {}).items():
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise ConfigError(
                f"Expected groups as {{name: (of the members, of the nonmembers)}}, got {name!r}: "
                f"{type(pair).__name__}."
            )
        values = [np.asarray(one) for one in pair]
        for part, role in zip(values, ("members", "nonmembers"), strict=True):
            if part.shape != (len(sets[role]),):
                raise DataError(
                    f"Expected the group {name} of the {role} as {len(sets[role])} values, got "
                    f"shape {part.shape}."
                )
        every = np.unique(np.concatenate(values))
        if len(every) > _MOST_VALUES:
            raise DataError(
                f"Expected at most {_MOST_VALUES} values of the group {name}, got {len(every)}."
            )
        groups += [
            Group(f"{name} = {value}", *(torch.from_numpy(part == value) for part in values))
            for value in every.tolist()
        ]
    return tuple(groups)


def _utility(game: Game, untested: list[str]) -> Iterator[Finding]:
    """Counts how often the released winner is right, and how often it is the model's."""
    if game.is_vector:
        yield _closeness(game)
        return
    given = game.ask(game.nonmembers).distribution.argmax(-1)
    truths = {"agreement": game.model_labels(game.nonmembers)}
    try:
        truths = {"accuracy": game.labels(game.nonmembers), **truths}
    except NotApplicable as reason:
        untested.append(f"accuracy: {reason}")
    count = len(given)
    for name, truth in truths.items():
        yield Finding.of(
            name,
            proportion(int((given == truth).sum()), count),
            samples=count,
            baseline=float(truth.bincount().max()) / count,
            threat=Threat(),
            source="the released winner on nonmembers",
        )


def _closeness(game: Game) -> Finding:
    """Measures what share of the model's variance is still in the values that are released."""
    clean = in_batches(Behind(game.shield), game.nonmembers.inputs).double()
    given = game.ask(game.nonmembers).distribution.double()
    missed = (given - clean).square().sum(1)
    return Finding.of(
        "agreement",
        saved_share(missed, (clean - clean.mean(0)).square().sum(1), seed=game.seed),
        samples=len(clean),
        baseline=0.0,
        threat=Threat(),
        source="share of the model's own variance that is released, on nonmembers",
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


def _require_auditable(bare: Shield) -> None:
    kind = bare.chain.layout.kind
    _, positions = bare.sizes or (0, ())  # asked again with the first answer
    if math.prod(positions) > 1:
        raise ConfigError(
            f"An audit measures one row of numbers an answer, the model gives {kind} at "
            f"{math.prod(positions)} positions. Its certificate is proven all the same: "
            "shield.certificate()."
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

    def advance(self, steps: int = 1) -> None:
        self._bar.update(steps)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
