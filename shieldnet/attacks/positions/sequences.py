"""Was this text in the training data? Scores of its tokens, beside a base's and beside shadows'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.membership.metrics import OF_GROUPS, OF_SEQUENCES
from shieldnet.attacks.membership.reporting import (
    MIN_ROWS,
    outcome_of,
    require_rates,
    require_untold,
)
from shieldnet.attacks.membership.scored import Scored
from shieldnet.attacks.positions.beside_shadows import COLUMNS, beside_shadows, means_of_sums
from shieldnet.attacks.positions.readings import (
    base_readings_of,
    extent_of,
    readings_of,
)
from shieldnet.attacks.positions.sequence_scores import (
    base_scores,
    means_of,
    plain_scores,
    unexplained,
)
from shieldnet.attacks.shadow_answers import PositionShadows
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable, Outcome
from shieldnet.shield.module import Shield

_PREFIX = "membership.sequences"
_ROWS_PER_COLUMN = 10  # of the reference, for each mean of the base that is taken off


@dataclass(frozen=True)
class SequenceMembership(Attack):
    """Scores every text by what is released of its tokens; members score higher.

    Scores: those of ``plain_scores``; with a base (``audit(base=...)``) those of ``base_scores``
    and what the base's own answers do not foretell of the means; with shadows LiRA on the means and
    InfoRMIA. What the target, the base and every shadow say is read behind the same shield; the
    base is public, so it is asked without one too.

    All are reported with how many of their scores differ, and the worst as
    ``membership.sequences.auc`` and ``membership.sequences.tpr_at_fpr_...``, whose intervals hold
    for all at once. Groups as in ``Membership``. Texts that are in a set more than once count once.

    Errors: NotApplicable where answers are no rows of tokens, or members can be told without the
        model.
    NOT promised: that no attack does better. ``PositionAveraging`` averages noise.
    """

    at_positions = True
    metrics = (*OF_SEQUENCES, *OF_GROUPS)
    needs_shadows = True
    fprs: tuple[float, ...] = (1e-2, 1e-3)

    def __post_init__(self) -> None:
        require_rates(self.fprs)

    def __call__(self, game: Game) -> Outcome:
        require_sequences(game)
        game.require_rows(MIN_ROWS, game.members, game.nonmembers)
        require_untold(game)
        found = outcome_of(game, _PREFIX, sequence_scores(game), self.fprs)
        return replace(found, untested=(*_left_out(game), *found.untested))


def require_sequences(game: Game) -> None:
    """Raises NotApplicable where answers are no distributions along one axis of positions."""
    positions = extent_of(game).positions
    if game.is_vector:
        kind = game.shield.chain.layout.kind
        raise NotApplicable(f"it reads distributions of tokens, the model gives {kind}")
    if len(positions) != 1:
        raise NotApplicable(f"it reads sequences, the model answers at positions {positions}")


def sequence_scores(game: Game) -> dict[str, Scored]:
    """Scores members and nonmembers in every way that the game allows."""
    floor = floor_of(game)
    by_set = [_scores_of(game, examples, floor) for examples in (game.members, game.nonmembers)]
    rows = (torch.arange(len(game.members)), torch.arange(len(game.nonmembers)))
    scored = {name: Scored(by_set[0][name], by_set[1][name], rows, queries=1) for name in by_set[0]}
    shadows = game.position_shadows
    if shadows is not None:
        compared = _beside_shadows(game, shadows, floor, by_set)
        scored |= {
            name: Scored(of_members, of_nonmembers, rows, 1, shadows.count)
            for name, (of_members, of_nonmembers) in compared.items()
        }
    return scored


def floor_of(game: Game) -> float:
    """Returns half of the least that target or base released above zero, on the reference.

    Of the base it is what the shield lets through: without one it says less of any token.
    """
    least = [readings_of(game, examples).least for examples in game.reference]
    if game.base is not None:
        least += [base_readings_of(game, one, game.base).least for one in game.reference]
    return max(min(least) / 2, 1e-300)


def _bases(game: Game) -> list[Shield]:
    """Returns the base without a shield, as anybody has it, and behind the target's."""
    if game.base is None:
        return []
    behind = [game.base] if game.base.settings != game.base.bare().settings else []
    return [game.base.bare(), *behind]


def _scores_of(game: Game, examples: Examples, floor: float) -> dict[str, Tensor]:
    readings = readings_of(game, examples)
    scores = plain_scores(readings, floor)
    if game.base is None:
        return scores
    scores |= base_scores(readings, base_readings_of(game, examples, game.base), floor)
    return scores | _beside_base(game, examples, floor)


def _beside_base(game: Game, examples: Examples, floor: float) -> dict[str, Tensor]:
    """Takes off every mean what the base's own answers foretell of it, by the reference."""
    known = _foretold(game, examples, floor)
    reference = torch.cat([_foretold(game, one, floor) for one in game.reference])
    columns = max(1, min(known.shape[1], len(reference) // _ROWS_PER_COLUMN))
    means = [means_of(readings_of(game, one), floor) for one in game.reference]
    return {
        f"{name} beside base": unexplained(
            value,
            known[:, :columns],
            torch.cat([one[name] for one in means]),
            reference[:, :columns],
        )
        for name, value in means_of(readings_of(game, examples), floor).items()
    }


def _foretold(game: Game, examples: Examples, floor: float) -> Tensor:
    """Returns means of what the base says of each text. Shapes: -> (rows, columns)."""
    bases = [base_readings_of(game, examples, base) for base in _bases(game)]
    return torch.stack([mean for base in bases for mean in means_of(base, floor).values()], 1)


def _beside_shadows(
    game: Game, shadows: PositionShadows, floor: float, own: Sequence[Mapping[str, Tensor]]
) -> dict[str, tuple[Tensor, ...]]:
    """Compares every text's means with the shadows'. Shapes: -> (members,), (nonmembers,)."""
    sets = (game.members, game.nonmembers)
    trained_on = torch.cat([shadows.trained_on[examples.name] for examples in sets], 1)
    parts = [_said_by_shadows(game, shadows, examples, floor) for examples in sets]
    said = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    target = {name: torch.cat([scores[name] for scores in own]) for name in said}
    owned = None
    if game.auxiliary is not None:
        owned = (
            means_of(readings_of(game, game.auxiliary), floor)["loss"],
            _said_by_shadows(game, shadows, game.auxiliary, floor)["loss"],
        )
    scores = beside_shadows(target, said, trained_on, owned)
    sizes = [len(examples) for examples in sets]
    return {name: values.split(sizes) for name, values in scores.items()}


def _said_by_shadows(
    game: Game, shadows: PositionShadows, examples: Examples, floor: float
) -> dict[str, Tensor]:
    """Returns means of what the shadows say of each text. Shapes: -> each (shadows, rows)."""
    sums = shadows.sums[game.shield.settings.digest()][examples.name]
    counted = readings_of(game, examples).counted.flatten(1).sum(1)
    means = means_of_sums(sums[..., :COLUMNS], counted, floor)
    return dict(zip(("loss", "capped loss", "right tokens"), means, strict=True))


def _left_out(game: Game) -> list[str]:
    if game.base is not None:
        return []
    return [
        "membership of sequences beside the public model that was fine-tuned, the strongest attack "
        "for its cost: pass base="
    ]
