"""Shadows in stages: each is trained on what the last one makes the target's records seem to be."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.borrowing import lira_borrowing
from shieldnet.attacks.membership.comparison import ShadowComparison
from shieldnet.attacks.membership.shadows import MIN_SHADOWS, ShadowPlan, description, train_shadows
from shieldnet.attacks.shadow_answers import Shadows, share_of_members
from shieldnet.core.errors import ConfigError
from shieldnet.core.randomness import noise_about, replayed_noise
from shieldnet.running.store import Cache

MIN_CASCADE = 4 * MIN_SHADOWS
"""Fewer shadows than this are not worth three stages."""
LEAST_CHANCE = 0.1
"""Chance with which even the surest record trains a later shadow, or is left out of one."""


def stages_of(count: int) -> tuple[int, ...]:
    """Divides shadows into stages: half of them are drawn blindly, and two quarters are guided."""
    if count < MIN_CASCADE:
        raise ConfigError(f"Expected at least {MIN_CASCADE} shadows for a cascade, got {count}.")
    last = count // 4
    return count - 2 * last, last, last


def train_cascade(
    plan: ShadowPlan,
    sizes: tuple[int, ...],
    *,
    engine: str = "processes",
    workers: int | None = None,
    cache: Cache | None = None,
    done: Callable[[], object] = lambda: None,
) -> Shadows:
    """Trains shadows in stages of these sizes, as ``train_shadows`` trains those of one.

    The first stage draws its records blindly. Each later one draws a record with the chance that
    it trained the target, by LiRA on the stages before: the shadows' other records come closer to
    the target's, and what a record itself does to its answer stands out. No chance is below
    ``LEAST_CHANCE`` or above one less it, so that every record is left out at times.
    Guided by what ``plan.shield`` answers alone, never by which set a record is in.

    Source: CMIA, arXiv:2511.04716; there the surest records are fixed, here all are drawn.
    Errors: as ``train_shadows``.
    """
    shadows: Shadows | None = None
    for stage, size in enumerate(sizes):
        chances = {} if shadows is None else _chances(plan, shadows)
        part = replace(plan, count=size, stage=stage, chances=chances)
        found = train_shadows(part, engine=engine, workers=workers, cache=cache, done=done)
        how = description(replace(plan, count=sum(sizes[: stage + 1])))
        shadows = found if shadows is None else shadows.followed_by(found, how)
    if shadows is None:
        raise ConfigError("Expected at least one stage of shadows, got none.")
    return shadows


def _chances(plan: ShadowPlan, shadows: Shadows) -> dict[str, Tensor]:
    """Returns the chance that each record trained the target, by what it and shadows answer."""
    sets = plan.members, plan.nonmembers
    game = Game(plan.shield, *sets, plan.auxiliary, seed=plan.seed, shadows=shadows)
    latest = slice(-shadows.guided, None) if shadows.guided else slice(None)
    trained_on = torch.cat([shadows.trained_on[examples.name] for examples in sets], 1)
    with replayed_noise(plan.seed), noise_about("cascade", shadows.count):
        comparison = ShadowComparison(game, shadows, *sets, 1)
        target, others = comparison.target_signals(), comparison.shadow_signals()
    odds = lira_borrowing(target["loss"], others["loss"][latest], trained_on[latest])
    prior = torch.tensor(share_of_members(*map(len, sets)), dtype=odds.dtype).logit()
    chances = (odds + prior).sigmoid().clamp(LEAST_CHANCE, 1 - LEAST_CHANCE)
    sizes = [len(shadows.places[examples.name]) for examples in sets]
    return dict(zip((examples.name for examples in sets), chances.split(sizes), strict=True))
