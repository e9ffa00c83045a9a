"""What a reader must know before the numbers: sets that may be exchanged, or are too small."""

from collections.abc import Iterator, Mapping, Sequence

from shieldnet.attacks import Game
from shieldnet.attacks.answers import inputs_at_once
from shieldnet.attacks.positions.completion import reads_later_tokens
from shieldnet.attacks.positions.painted_shield import PaintedShield
from shieldnet.attacks.positions.truth import MASK, token_columns
from shieldnet.auditing.box_forms import share_without_area
from shieldnet.auditing.plan import Tier
from shieldnet.findings.metrics import Metrics
from shieldnet.reports.report import BARE
from shieldnet.reports.subject import Subject
from shieldnet.shield.module import Shield

_MIN_SAMPLES = 20
"""A finding of fewer records says next to nothing."""
_MANY = 0.2
"""Of texts that end alike: more of them than by chance in a language."""
_FEW_IMAGES = 32
_MOST = 0.5  # of the released boxes
_BY_LOSS = ("membership.loss.auc", "membership.sequences.loss.auc")
NOTHING = "almost nothing was measured"


def notices(
    game: Game, shields: Mapping[str, Shield], subjects: Sequence[Subject], tier: Tier
) -> Iterator[str]:
    """Yields a line for each thing that makes the findings mean something else, or nothing."""
    if measured_nothing(game, subjects, tier):
        sets = f"{len(game.members)} members and {len(game.nonmembers)} nonmembers"
        owned = "no" if game.auxiliary is None else len(game.auxiliary)
        yield (
            f"{NOTHING}: no attack had enough to go on ({sets}, {owned} auxiliary records); what "
            "follows says what each of them takes"
        )
    yield from _unnamed_padding(game)
    yield from _read_both_ways(game)
    yield from _flattened(game, shields)
    yield from _exchanged(next(subject for subject in subjects if subject.name == BARE))


def _unnamed_padding(game: Game) -> Iterator[str]:
    """Says so where many texts end in repeats of one token, which may fill them up."""
    columns = _columns_of_texts(game)
    if game.padding is not None or "tokens" not in columns or MASK in columns:
        return
    tokens = game.nonmembers.inputs.flatten(1)[:, columns["tokens"]].long()
    last = int(tokens[:, -1].mode().values)
    filled = ((tokens[:, -1] == last) & (tokens[:, -2] == last)).double().mean()
    if filled >= _MANY:
        yield (
            f"token {last} may be padding: {float(filled):.0%} of the nonmembers end in repeats of "
            f"it, and every repeat counts as text. If so, name it: padding={last}"
        )


def _read_both_ways(game: Game) -> Iterator[str]:
    """Says so where texts without labels are held to next tokens that the model reads."""
    if _columns_of_texts(game) and reads_later_tokens(game):
        yield (
            "the model reads the tokens that it was held to: its answer about a token depends on "
            "later ones, as a masked language model's does, and next tokens say little of it. "
            "Pass labels of the tokens that are masked in the inputs, -100 elsewhere"
        )


def _flattened(game: Game, shields: Mapping[str, Shield]) -> Iterator[str]:
    """Says so where a shield leaves most boxes of a detector without an area."""
    bare = shields[BARE]
    if not isinstance(bare, PaintedShield):
        return
    images = game.nonmembers.inputs[: min(_FEW_IMAGES, inputs_at_once(game.nonmembers.inputs))]
    of_model = share_without_area(bare, images)
    for name, shield in shields.items():
        if name == BARE or not isinstance(shield, PaintedShield) or not shield.deterministic:
            continue
        share = share_without_area(shield, images)
        if share >= max(_MOST, 2 * of_model):
            yield (
                f"boxes with an area behind {name}: it leaves {share:.0%} of them without one "
                f"(the model {of_model:.0%}), as its step is larger than they are; pass a smaller "
                "one, RoundTo(step)"
            )


def _columns_of_texts(game: Game) -> dict[str, slice]:
    """Finds the tokens of texts that are held to their next tokens; nothing of other records."""
    if game.extent is None or game.nonmembers.labels is not None:
        return {}
    return token_columns(game.nonmembers, game.extent.positions) or {}


def measured_nothing(game: Game, subjects: Sequence[Subject], tier: Tier) -> bool:
    """Returns whether no attack found anything on enough records, on any shield."""
    every = {metric.name: metric for attack in tier.attacks for metric in attack.metrics}
    declared, is_small = Metrics(tuple(every.values())), len(game.nonmembers) < _MIN_SAMPLES
    return bool(tier.attacks) and not any(
        declared.find(finding.name) is not None
        and not (is_small and finding.samples < _MIN_SAMPLES)
        for subject in subjects
        for finding in subject.findings
    )


def _exchanged(bare: Subject) -> Iterator[str]:
    """Says so where the model surely fits the nonmembers better than its own records."""
    for finding in bare.findings:
        if finding.name in _BY_LOSS and finding.high < 0.5:
            yield (
                "members and nonmembers may be exchanged: the model without a shield fits the "
                f"nonmembers better than the members (membership AUC by loss {finding}, "
                "significantly below 0.5). Check which set trained it: membership is not measured "
                "if they are"
            )
