"""How long an audit takes, said before it starts."""

import math
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass

import torch

from shieldnet.attacks import Game, PositionAveraging
from shieldnet.attacks.answers import in_batches
from shieldnet.attacks.base import Form
from shieldnet.attacks.inversion.decoding import MIN_IMAGE_SIDE
from shieldnet.attacks.membership.shadows import trained_at_once
from shieldnet.attacks.positions.truth import token_columns
from shieldnet.auditing.plan import Plan, Tier
from shieldnet.checks.masking import ROWS_ASKED, Masking
from shieldnet.running.engine import one_thread
from shieldnet.shield.module import Shield

_PROBE_ROWS = 256
_PROBE_S = 0.2
_START_S = 1.0  # for what is imported by attacks
_PACE = (
    1.7  # between a core as quick as the one that the terms were fitted on and one half as quick
)
_ASKS, _ASKS_OF_MAPS = 25, 4
_DRAW_S = 8e-7  # for one number's noise, of a secure source
_ROWS_OF_MAPS = 3000  # more are not learned from
Done = Callable[[], object]
Tell = Callable[[str], object]


def announce(game: Game, shields: Mapping[str, Shield], plan: Plan, tell: Tell) -> str:
    """Tells how long an audit will take, and returns it in words: quick, about 10 s."""
    tier = plan.tier
    shadows = plan.shadows if _has_shadows(game, plan) else 0
    references = shadows if plan.train is None else 0
    load = Load.of(game, reference_models=references)
    noisy = [not shield.deterministic for shield in shields.values()]
    duration = in_words(
        estimate_s(tier, load, shields=noisy, workers=plan.at_once, waiting=waiting())
    )
    shadowed = f", {shadows} shadows{_training_of(plan)}" if shadows else ""
    tell(
        f"{tier.name} audit: {_count(tier.attacks, 'attack')} and {_count(tier.checks, 'check')} "
        f"on {_count(shields, 'shield')}{shadowed}; {duration}"
    )
    return f"{tier.name}, {duration}"


def _training_of(plan: Plan) -> str:
    """Says that training by the user's function comes on top, and whether its time will be told."""
    if plan.train is None:
        return ""
    told = "estimated after the first" if plan.shadow_jobs > plan.at_once else "not estimated"
    return f" (their training on top, {told})"


def _has_shadows(game: Game, plan: Plan) -> bool:
    """Returns whether shadows are trained: reference models classify one row of fractions."""
    is_of_classes = game.extent is None and game.shield.chain.layout.kind != "embeddings"
    is_read = is_of_classes and game.members.inputs.is_floating_point()
    return plan.trains_shadows and (plan.train is not None or is_read)


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def in_words(seconds: float) -> str:
    """Writes a length of time for a person: about 40 s, about 3 min, about 2 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {max(1, seconds):.0f} s"


@dataclass(frozen=True)
class Load:
    """Says what an audit works on.

    rows: of all sets; owned: of the auxiliary ones; targets: of the nonmembers.
    ask_s: seconds for one answer about every row, measured. pictures: whether images are drawn.
    form: what records are, by which attacks ask about candidates. numbers: of an answer.
    reference_models: how many are trained; shadows by ``train`` are not foreseen.
    """

    rows: int
    owned: int
    targets: int
    features: int
    classes: int
    ask_s: float
    pictures: bool = False
    form: Form = "rows"
    reference_models: int = 0
    numbers: int = 1

    @classmethod
    def of(cls, game: Game, reference_models: int) -> "Load":
        """Looks at the sets of an audit, and times the model on some rows."""
        probe = game.nonmembers.inputs[:_PROBE_ROWS]
        answers = in_batches(game.shield, probe)  # the first call prepares what others only use
        with one_thread():  # as attacks ask
            begun = time.monotonic()
            in_batches(game.shield, probe)
            asking_s = time.monotonic() - begun
        owned = 0 if game.auxiliary is None else len(game.auxiliary)
        rows = len(game.members) + len(game.nonmembers) + owned
        return cls(
            rows=rows,
            owned=owned,
            targets=len(game.nonmembers),
            features=probe[0].numel(),
            classes=1 if game.is_vector or game.extent else answers.shape[-1],  # of decoders
            ask_s=asking_s * rows / len(probe),
            numbers=answers[0].numel(),
            form=_form_of(game),
            pictures=probe.dim() == 4 and min(probe.shape[2:]) >= MIN_IMAGE_SIDE,
            reference_models=reference_models,
        )


def _form_of(game: Game) -> Form:
    if game.extent is None:
        return "rows"
    is_text = token_columns(game.nonmembers, game.extent.positions) is not None
    return "texts" if is_text else "maps"


def waiting() -> float:
    """Returns how many seconds pass for a second of work: 1 on a free core, more on a busy one.

    It works for a fifth of a second; at most 20.
    """
    matrix = torch.eye(_PROBE_ROWS, dtype=torch.float64)
    with one_thread():
        begun, worked = time.monotonic(), time.process_time()
        while time.process_time() - worked < _PROBE_S and time.monotonic() - begun < 20 * _PROBE_S:
            matrix = (matrix @ matrix).clamp(max=1)
        passed, spent = time.monotonic() - begun, time.process_time() - worked
    return min(20.0, max(1.0, passed / max(spent, 1e-3)))


def tell_when_first_is_done(count: int, at_once: int, done: Done, tell: Tell) -> Done:
    """Returns a callback that tells, at its first call, how long the other pieces will take.

    count: of the pieces. at_once: how many run at the same time. done: is called each time.
    """
    begun = time.monotonic()
    calls = 0

    def told() -> None:
        nonlocal calls
        calls += 1
        left = math.ceil(count / at_once) - 1
        if calls == 1 and left > 0:
            taken = time.monotonic() - begun
            tell(f"shadows by train: {in_words(taken * left)} more for the other {count - 1}")
        done()

    return told


def estimate_s(
    tier: Tier, load: Load, *, shields: Sequence[bool], workers: int = 1, waiting: float = 1.0
) -> float:
    """Estimates how long an audit takes, to within a factor of two on two cores.

    shields: for each, whether it answers with noise. workers: how many work at once. waiting:
    seconds that pass for a second of work; answers are timed as they come, and need none of it.
    Source: fitted to the table of benchmarks/cost.py.
    """
    features, is_map = load.features, load.form == "maps"
    work = _work_on_maps(tier, load) if is_map else _work(tier, load)
    steps = min(max(1500, load.rows / 17), load.rows * 0.6)
    reference_s = steps * (0.0022 + 0.0045 * min(features, 512) / 512)
    waves = math.ceil(load.reference_models / trained_at_once(None) / workers)
    asks = _ASKS_OF_MAPS if is_map else _ASKS
    noisy = tier.asks if load.form == "rows" else asks
    asking = load.ask_s * sum(noisy if is_noisy else asks for is_noisy in shields)
    asking += waiting * sum(shields) * _drawing_s(tier, load)
    if not is_map and any(isinstance(check, Masking) for check in tier.checks):
        asking += load.ask_s / load.rows * ROWS_ASKED * (len(shields) - 1)
    asked = (load.form, load.owned, load.targets)
    candidates = sum(attack.candidates_asked(*asked) for attack in tier.attacks)
    asking += load.ask_s / load.rows * candidates * len(shields)
    return waiting * (_START_S + _PACE * (waves * reference_s + work * len(shields))) + asking


def _drawing_s(tier: Tier, load: Load) -> float:
    """Returns the seconds in which noise at positions is drawn, to be averaged, for one shield."""
    if load.form == "rows":
        return 0.0
    return sum(
        _DRAW_S * min(attack.numbers, attack.queries * load.rows * load.numbers)
        for attack in tier.attacks
        if isinstance(attack, PositionAveraging)
    )


def _work_on_maps(tier: Tier, load: Load) -> float:
    """Returns the seconds for one shield, without its answers: decoders of places, gradients."""
    rows = min(load.rows, _ROWS_OF_MAPS)
    more = 0.6 * tier.more_s * (1 + load.features / 3072) if load.pictures else 0.1 * tier.more_s
    return 0.1 + 6e-4 * rows + 7e-7 * rows * load.features + more


def _work(tier: Tier, load: Load) -> float:
    """Returns the seconds for one shield, without its answers."""
    owned, features, classes = load.owned, load.features, load.classes
    work = 0.4 + (min(owned, 1250) / 1250) ** 2 + 3.6 * (min(owned, 4000) / 4000) ** 3
    work += 2.5e-7 * load.rows * features + 3.3e-4 * min(features, 20_000)
    work += 2.2e-10 * classes**2 * features * min(owned, 2000)
    more = 1 + min(features, 1000) / 470 + 10 * load.pictures * features / 3072
    return work + tier.more_s * more
