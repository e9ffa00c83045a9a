"""Turning answers back into inputs: how much closer does an answer bring than its label alone?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from shieldnet.attacks.adversary.decoders import (
    Convolutional,
    Decoder,
    KernelRidge,
    NearestNeighbors,
    Network,
    Ridge,
)
from shieldnet.attacks.adversary.features import Parts, Words, units_of
from shieldnet.attacks.adversary.label_baseline import label_baseline
from shieldnet.attacks.adversary.scales import InBothUnits, Scale
from shieldnet.attacks.adversary.selection import MIN_ROWS, Each, choose_each
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.inversion.inputs import Errors, Inputs
from shieldnet.core.statistics import (
    Interval,
    proportion,
    saved_share,
    saved_shares,
)
from shieldnet.findings.finding import Exposed, Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import RELEASE_LESS, Limit, Metric
from shieldnet.findings.reading import OF_COLUMNS

_ToFinding = Callable[[str, Interval], Finding]
MIN_IMAGE_SIDE = 16
"""Pixels on each side, at least, of an image that is drawn."""
_COLUMN_RESAMPLES = 500
_MIN_FEATURES, _MUCH, _ONE_SIDED = 8, 0.5, 3.0  # to bound what is given away of one record
_BY_CHANCE = 0.00135  # of records that give nothing away, above such a bound
_MAX_NAMED = 8
LEAKAGE = Limit(
    "max_leakage",
    0.10,
    "How far an answer gives its input away beyond its label; 0 nothing, 1 everything. One answer, "
    "and many averaged.",
    is_set=True,
    helps=RELEASE_LESS,
    needs="give auxiliary records; of texts max_sequence_membership_auc and max_verbatim are "
    "measured instead",
)
INVERTS = ("AISVS 11.1.3", "AML.T0024.001", "NISTAML.032")
"""Items of standards that every attack on inputs speaks to."""


@dataclass(frozen=True)
class Inversion(Attack):
    """Trains every decoder on every reading of the answers and keeps the best for each feature.

    The adversary asks the shield about its own auxiliary rows and learns inputs from answers. On a
    fifth of these rows it chooses each decoder's reading and setting, and then, column by column
    (pixel by pixel, word by word), a decoder or the label alone; it trains again on all of them and
    is scored once on the nonmembers. leakage = (MSE_label - MSE) / MSE_label, with MSE_label of a
    decoder that sees the model's label alone: 0 means that the answer gives no more away than its
    label, 1 that it gives everything.

    ``inversion.records`` is the share of records of which more than half is surely given away: of
    each, the features are the sample. ``r2.inversion`` is the leakage over the mean input instead
    of the label's. Values and embeddings have no label: the mean is the baseline.

    queries: answers about each row, averaged. Images are scored in one unit for all pixels,
    tables in the units and weights of ``Columns``, texts by the words that occur in them. Columns
    that hardly ever vary are listed as not tested. Of a model of several inputs each is scored by
    itself (``inversion.column.<input>``), and ``inversion`` is the most exposed one, its
    interval widened because it was chosen: a table beside an image counts in full.
    pictures: also tries a decoder that draws, for images of 16 x 16 pixels and more.
    """

    metrics = (
        Metric(
            "inversion",
            "leakage",
            "more",
            LEAKAGE,
            standards=(*INVERTS, "EDPB queries"),
            headline=True,
        ),
        Metric(
            "averaging.*",
            "leakage, averaged",
            "more",
            LEAKAGE,
            standards=(*INVERTS, "EDPB queries"),
        ),
        Metric(
            "inversion.records",
            "records mostly reconstructed",
            "more",
            Limit(
                "max_inversion_records",
                0.01,
                "the share of records of which more than half is reconstructed",
                helps=RELEASE_LESS,
                needs="give auxiliary records, of eight columns or pixels or more",
            ),
            standards=("EDPB queries",),
        ),
        Metric(
            f"{OF_COLUMNS}*",
            "leakage of a column",
            "more",
            Limit(
                "max_column_leakage",
                0.20,
                "the same of every column of a table, and of every input, by itself",
                helps=f"Train the model without the column. {RELEASE_LESS}",
                needs="give auxiliary records, of a table or of several inputs",
            ),
            standards=INVERTS,
        ),
        Metric(
            "r2.*",
            "R2 over the mean input",
            "more",
            ungated="the label is released on purpose: inversion counts what is beyond it",
        ),
    )
    learns = True
    queries: int = 1
    decoders: tuple[Decoder, ...] = (Ridge(), KernelRidge(), NearestNeighbors(), Network())
    pictures: bool = True

    def __call__(self, game: Game) -> Outcome:
        auxiliary, targets = game.owned(), game.nonmembers
        game.require_rows(MIN_ROWS, auxiliary, targets)
        secret = units_of(auxiliary.inputs, auxiliary.packing, InBothUnits)
        known, sought = secret.apply(auxiliary.inputs), secret.apply(targets.inputs)
        if known.shape[1] == 0:
            raise NotApplicable("no word tells one text from another")
        weights = secret.weights
        if not weights.any():
            raise NotApplicable("no column of the auxiliary rows varies")
        learned = game.views(game.ask(auxiliary, self.queries))
        decoders = (*self.decoders, *self._drawing(auxiliary.inputs.shape[1:]))
        labels = game.model_labels(auxiliary)
        chosen = choose_each(
            decoders, learned, known, labels, game.classes, weights=weights, seed=game.seed
        )
        weights = secret.settled(chosen.share, chosen.least)
        unseen = game.views(game.ask(targets, self.queries))
        by_label = label_baseline(labels, known, game.classes)[game.model_labels(targets)]
        tried = chosen.predict(learned, known, unseen, by_label)
        guess = tried.where(chosen.sure, by_label)
        each = Errors(
            *(
                (guessed - sought).square() * weights
                for guessed in (guess, tried, by_label, known.mean(0))
            )
        )
        threat = Threat(self.queries, len(auxiliary))
        finding = partial(_finding, len(targets), threat, str(chosen), chosen.note)
        name = "inversion" if self.queries == 1 else f"averaging.{self.queries}"
        columns = _columns(game, secret) if self.queries == 1 else ()
        summary = finding
        share, worst, of_inputs = each.share(game.seed), each, tuple[Finding, ...]()
        if isinstance(secret, Parts):
            by_input = Inputs.of(secret, each, game.seed)
            share, worst = by_input.worst
            summary = partial(_finding, len(targets), threat, str(chosen), by_input.note)
            named = () if self.queries > 1 else by_input.shares
            of_inputs = tuple(finding(f"{OF_COLUMNS}{part}", found) for part, found in named)
        total = worst.guess.sum(1)
        return Outcome(
            findings=(
                summary(name, share),
                *of_inputs,
                *_of_columns(finding, columns, chosen, each, weights, secret.notes, game.seed),
                summary(f"r2.{name}", saved_share(total, worst.mean.sum(1), seed=game.seed)),
                *self._of_records(summary, worst.guess, worst.tried, worst.label),
            ),
            untested=_rare(columns, weights),
            features={"recovered": secret.shaped(share_per_feature(each.guess, each.label))},
            exposed=tuple(exposed_by(name, total, worst.label.sum(1))),
            reconstructions=(
                secret.undo(guess).reshape(targets.inputs.shape)
                if isinstance(secret, Scale)
                else None
            ),
        )

    def _of_records(
        self,
        finding: _ToFinding,
        errors: Tensor,
        tried: Tensor,
        baseline: Tensor,
    ) -> tuple[Finding, ...]:
        """Counts the records of which more than half is given away, each by its own lower bound."""
        if self.queries > 1 or errors.shape[1] < _MIN_FEATURES:
            return ()
        given_away, most = (
            proportion(float((record_bounds(missed, baseline) > _MUCH).sum()), len(errors))
            for missed in (errors, tried)
        )
        # A bound that each record keeps with 99.9% is broken by one in a thousand.
        interval = replace(given_away, high=max(given_away.high, most.high))
        return (replace(finding("inversion.records", interval), baseline=_BY_CHANCE),)

    def _drawing(self, shape: torch.Size) -> tuple[Decoder, ...]:
        is_image = len(shape) == 3 and min(shape[1:]) >= MIN_IMAGE_SIDE
        return (Convolutional(shape=tuple(shape)),) if self.pictures and is_image else ()


def _finding(
    samples: int, threat: Threat, source: str, note: str, name: str, share: Interval
) -> Finding:
    return Finding.of(
        name, share, samples=samples, baseline=0.0, threat=threat, source=source, note=note
    )


def _columns(game: Game, secret: Scale | Words | Parts) -> tuple[str, ...]:
    """Names the features that are columns of a table; "" for one that is none."""
    if isinstance(secret, Parts):
        return secret.columns
    return secret.named(game.columns) if isinstance(secret, Scale) else ()


def _of_columns(
    finding: _ToFinding,
    columns: tuple[str, ...],
    chosen: Each,
    errors: Errors,
    weights: Tensor,
    units: tuple[str, ...],
    seed: int,
) -> Iterator[Finding]:
    """Reports what is given away of every named column that varies.

    units: a note of every feature whose units are unusual.
    """
    named = torch.tensor([bool(name) for name in columns], dtype=torch.bool)
    scored = ((weights[: len(columns)] > 0) & named).nonzero().flatten()
    shares = saved_shares(
        errors.tried[:, scored], errors.label[:, scored], seed=seed, resamples=_COLUMN_RESAMPLES
    )
    for column, share in zip(scored.tolist(), shares, strict=True):
        found = finding(f"{OF_COLUMNS}{columns[column]}", chosen.kept(share, column))
        note = "; ".join(part for part in (found.note, units[column]) if part)
        yield replace(found, source=chosen.source_of(column), note=note)


def _rare(columns: tuple[str, ...], weights: Tensor) -> tuple[str, ...]:
    """Names the columns that cannot be scored, in one line."""
    scored = {name for name, weight in zip(columns, weights.tolist(), strict=False) if weight}
    rare = [name for name in dict.fromkeys(columns) if name and name not in scored]
    if not rare:
        return ()
    more = f" and {len(rare) - _MAX_NAMED} more" if len(rare) > _MAX_NAMED else ""
    named = ", ".join(rare[:_MAX_NAMED]) + more
    return (f"inversion of {named}: hardly any auxiliary row differs there from the others",)


def record_bounds(errors: Tensor, baseline: Tensor) -> Tensor:
    """Returns lower bounds (99.9%: of many records) of what is given away beyond its label.

    Its features are the sample: of few that depend on each other the bound is too sure.
    Shapes: errors and baseline (records, features), squared -> (records,).
    """
    total = baseline.sum(1).clamp_min(1e-30)
    ratio = errors.sum(1) / total
    spread = (errors - ratio.unsqueeze(1) * baseline).norm(dim=1) / total
    bound: Tensor = 1 - ratio - _ONE_SIDED * spread
    return bound


def share_per_feature(errors: Tensor, baseline: Tensor) -> Tensor:
    """Returns what share of each feature is recovered beyond the label; 0 for constant ones.

    Shapes: (n, d), (n, d) -> (d,).
    """
    total = baseline.sum(0)
    return torch.where(total > 0, 1 - errors.sum(0) / total.clamp_min(1e-30), 0.0)


def exposed_by(name: str, errors: Tensor, baseline: Tensor) -> Iterator[Exposed]:
    """Lists the targets of which an answer gives the most away, if any. Shapes: (n,), (n,)."""
    shares = 1 - errors / baseline.clamp_min(1e-30)
    meaning = "share of the record that its answer gives away beyond its label"
    exposed = Exposed.of(name, "nonmembers", torch.arange(len(shares)), shares, shares, meaning)
    if exposed.rows:
        yield exposed
