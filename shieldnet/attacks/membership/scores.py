"""All scores of a record by the answers about it; a higher score says member."""

import torch
from torch import Tensor

from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.comparison import STAND_INS, ShadowComparison
from shieldnet.attacks.membership.label_only import label_only
from shieldnet.attacks.membership.quantile import MIN_ROWS as QUANTILE_ROWS
from shieldnet.attacks.membership.quantile import quantile_scores
from shieldnet.attacks.membership.scored import Scored
from shieldnet.attacks.membership.signals import (
    floor_of,
    log_probabilities,
    membership_scores,
)
from shieldnet.data.examples import Examples

__all__ = ["all_scores", "log_probabilities", "membership_scores", "pooled_scores"]


def all_scores(
    game: Game, members: Examples, nonmembers: Examples, queries: int
) -> dict[str, Scored]:
    """Scores members and nonmembers in every way that the game allows.

    Labels were checked. Ways: those of ``membership_scores``; label-only on perturbed copies;
    quantile regression where the adversary owns labeled rows; with shadows also LiRA (online,
    offline, on modified entropy; borrowing from like records, also in the place of shadows with
    the record), RMIA (online, offline), ratios of symbols, label-only compared with shadows, an
    ensemble, and the cascade where shadows were trained in stages.
    """
    floor = floor_of(game, queries)
    rows = (torch.arange(len(members)), torch.arange(len(nonmembers)))
    of_members, of_nonmembers = (
        membership_scores(
            log_probabilities(game.ask(examples, queries), floor), game.labels(examples)
        )
        for examples in (members, nonmembers)
    )
    scores = {
        name: Scored(of_members[name], of_nonmembers[name], rows, queries) for name in of_members
    }
    if queries == 1 and members.inputs.is_floating_point():
        scores["label only"] = label_only(game, members, nonmembers)
    auxiliary = game.auxiliary
    if (
        auxiliary is not None
        and auxiliary.labels is not None
        and auxiliary.inputs.is_floating_point()
        and len(auxiliary) >= QUANTILE_ROWS
    ):
        owned_signal = membership_scores(
            log_probabilities(game.ask(auxiliary, queries), floor), game.labels(auxiliary)
        )["loss"]
        signals = {
            members.name: (members, of_members["loss"]),
            nonmembers.name: (nonmembers, of_nonmembers["loss"]),
        }
        quantile = quantile_scores(auxiliary, owned_signal, game.classes, signals, game.seed)
        scores["quantile"] = Scored(
            quantile[members.name], quantile[nonmembers.name], rows, queries
        )
    if game.shadows is not None and members.name in game.shadows.scores:
        comparison = ShadowComparison(game, game.shadows, members, nonmembers, queries)
        scores |= comparison.scores(scores)
    return scores


def pooled_scores(game: Game, of: type[ShadowComparison] = ShadowComparison) -> dict[str, Scored]:
    """Scores the records of shadows that are set aside as targets, by what the others say.

    Members of such a target are the records that trained it. A quarter of the shadows are targets
    and none of them is compared with: nothing that is scored helps to score. Shadows that were
    guided by the target are left out.
    """
    if game.shadows is None or game.shadows.weaker:
        return {}
    shadows, sets = game.shadows.independent, (game.members, game.nonmembers)
    if shadows.count < 2 * STAND_INS:
        return {}
    comparison = of(game, shadows, *sets, 1)
    signals = comparison.shadow_signals()
    trained_on = torch.cat([shadows.trained_on[examples.name] for examples in sets], 1)
    targets = shadows.count // 4
    shadow_signals = {name: values[targets:] for name, values in signals.items()}
    population = None
    if game.auxiliary is not None and "auxiliary" in shadows.scores:
        population = comparison.signals_about(game.auxiliary)["p"]
    scores: dict[str, list[Tensor]] = {}
    for target in range(targets):
        target_signals = {name: values[target] for name, values in signals.items()}
        if population is None:
            beaten = target_signals["p"], shadow_signals["p"], trained_on[targets:]
        else:
            none = shadows.trained_on["auxiliary"][targets:]
            beaten = population[target], population[targets:], none
        compared = comparison.compare(target_signals, shadow_signals, trained_on[targets:], beaten)
        for name, values in compared.items():
            scores.setdefault(name, []).append(values)
    truth = trained_on[:targets]
    nowhere = (torch.empty(0, dtype=torch.int64),) * 2
    return {
        name: Scored(
            torch.stack(values)[truth],
            torch.stack(values)[~truth],
            nowhere,
            1,
            shadows.count - targets,
        )
        for name, values in scores.items()
        if len(values) == targets  # symbols are compared only where every target has few
    }
