"""Learning one column of a record from the others and the shield: a sex, an age, a diagnosis."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from shieldnet.attacks.adversary.features import standardize
from shieldnet.attacks.adversary.selection import MIN_ROWS
from shieldnet.attacks.answers_alone import told_alone
from shieldnet.attacks.base import MAX_QUERIES, Answers, Attack, Game, ReadsFirst
from shieldnet.attacks.guesses import Guesses, Resampled, learned
from shieldnet.attacks.membership.attack import log_probabilities, membership_scores
from shieldnet.attacks.membership.residuals import Residuals
from shieldnet.attacks.secrets import MAX_ROWS, Secret
from shieldnet.core.statistics import CONFIDENCE, Interval
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NO_USE, UNREAD, Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import MORE_ATTACKS, RELEASE_LESS, Limit, Metric

PARTS_OF_ATTRIBUTES = (".gain", ".members_over_nonmembers")
"""Endings of findings about a column."""

_MIN_LOG_P = -7.0  # p of about .001: a model that is surer than that is vain
_NAMED = (
    "name the column with --sensitive (sensitive=). The model need not read it: a column of the "
    "sets that the model ignores is kept beside it"
)
_SAME = 1e-8  # squared distance, in deviations of an answer, up to which answers are the same
_MIN_UNIT = 1e-9  # what varies less is the arithmetic, not evidence


@dataclass(frozen=True)
class AttributeRecovery(Attack):
    """Learns a sensitive column from one answer about the record and all its other columns.

    The adversary asks the shield about the record with every value in turn, compares the answers
    with the one that it saw, in every reading, and weighs what fits against an imputation: the
    model-free guess from the other columns. Weights are learned on the auxiliary rows, where the
    guesses of the imputation are cross-fitted, and start from the imputation alone. Behind noise
    it averages many answers about each value, but has one about the record.

    ``attribute.<column>`` is the AUC of a secret with two values, else the share of values named
    right; its baseline is the imputation's. ``attribute.<column>.gain`` is what the answer adds.

    Of embeddings and values, ``attribute_alone.<column>`` is what an answer tells somebody who
    knows no other column (``told_alone``), over how often each value occurs.

    A column with more than 20 values is asked about at ten of its quantiles, and the secret is
    whether it lies above the auxiliary median. Rows with a value that the auxiliary data do not
    have are left out.
    NOT promised: that no adversary imputes better; a better imputation makes the gain smaller.
    Source: trying every value is Fredrikson et al. 2014; here an answer is there to compare with.
    """

    metrics = (
        Metric(
            "attribute.*",
            "{}: attribute recovered",
            "more",
            ungated="other columns tell it too: the gain of the answer is judged",
            standards=("AISVS 11.1.3",),
        ),
        Metric(
            "attribute.*.gain",
            "{}: attribute gain",
            "more",
            Limit(
                "max_attribute_gain",
                0.05,
                "what answers add to guesses of a sensitive column",
                helps=f"Train the model without the column. {RELEASE_LESS}",
                needs=_NAMED,
            ),
            standards=("AISVS 11.1.3", "AISVS 11.2.1", "NISTAML.032", "EDPB queries"),
            headline=True,
        ),
        Metric(
            "attribute_alone.*",
            "{}: attribute told by a vector alone",
            "more",
            ungated="how often each value occurs tells it too: the gain of the answer is judged",
            standards=("AISVS 11.1.3",),
        ),
        Metric(
            "attribute_alone.*.gain",
            "{}: attribute gain, the vector alone",
            "more",
            Limit(
                "max_attribute_alone_gain",
                0.05,
                "what embeddings or values tell of a sensitive column to who knows nothing else",
                helps=RELEASE_LESS,
                needs=f"{_NAMED}. It is of embeddings and values",
            ),
            standards=("AISVS 11.1.3", "AISVS 11.2.1", "NISTAML.032"),
        ),
    )

    def __call__(self, game: Game) -> Outcome:
        _require_table(game)
        game = game.with_beside()
        return _each_secret(game, (game.owned(), game.nonmembers), _recovered)


@dataclass(frozen=True)
class AttributeInference(Attack):
    """Learns a sensitive column of a member from its true label: no answer about it is seen.

    The adversary knows the other columns and the label, asks the shield about the member with
    every value, and guesses the value under which it looks most like a member: the model is
    surest of the label. That is combined with the imputation (here from the other columns and the
    label) in two ways: by weights learned on the auxiliary rows, and by Bayes' rule, which takes
    the model's log p of the label as it is. The better is reported, its intervals widened for two.

    ``attribute_inference.<column>`` and ``.gain`` are as in ``AttributeRecovery``, on members.
    ``.members_over_nonmembers`` is the gain on members less that on nonmembers: what training on
    the record adds to what the model knows of everybody.
    Source: Yeom et al. 2018; Mehnaz et al. 2022.
    """

    metrics = (
        Metric(
            "attribute_inference.*",
            "{}: attribute of members inferred",
            "more",
            ungated="other columns tell it too: the gain of the model is judged",
        ),
        Metric(
            "attribute_inference.*.gain",
            "{}: attribute gain on members",
            "more",
            Limit(
                "max_attribute_inference_gain",
                0.05,
                "what the model adds to guesses of a member's column, no answer about it seen",
                helps="Train the model without the column, or regularize it (fewer epochs, weight "
                "decay, larger leaves).",
                needs=f"{_NAMED}; {MORE_ATTACKS}",
            ),
            standards=("AISVS 11.2.1", "NISTAML.032"),
            rows="members",
        ),
        Metric(
            "attribute_inference.*.members_over_nonmembers",
            "{}: attribute gain, members over nonmembers",
            "more",
            ungated="the whole gain on members is judged, of which this is a part",
            standards=("EDPB extraction",),
        ),
    )

    def __call__(self, game: Game) -> Outcome:
        _require_table(game)
        game.require_answers_to_labels()
        game = game.with_beside()
        sets = (game.owned(), game.members, game.nonmembers)
        for examples in sets:
            game.labels(examples)
        return _each_secret(game, sets, _inferred)


def _require_table(game: Game) -> None:
    if game.nonmembers.inputs.dim() != 2:
        raise NotApplicable("it needs a table: inputs of two axes")
    if not game.sensitive:
        raise NotApplicable("name the columns: sensitive=(...)")


def _each_secret(
    game: Game,
    sets: tuple[Examples, ...],
    findings_of: Callable[[Game, Secret], tuple[Finding, ...]],
) -> Outcome:
    """Plays for every sensitive column; a column that does not fit is untested, with the reason."""
    game.require_rows(MIN_ROWS, *sets)
    findings: list[Finding] = []
    untested: list[str] = []
    for name in game.sensitive:
        try:
            findings += findings_of(game, Secret.of(game, name))
        except NotApplicable as reason:
            untested.append(f"{name}: {reason}")
    if not findings:
        raise NotApplicable("; ".join(untested))
    return Outcome(findings=tuple(findings), untested=tuple(untested))


def _recovered(game: Game, secret: Secret) -> tuple[Finding, ...]:
    sets = [game.owned(), game.nonmembers]
    scale = game.views(game.ask(game.owned()).first(MAX_ROWS))
    fits = [_fit(game, secret, examples, scale) for examples in sets]
    sides = [secret.others(examples.inputs)[:MAX_ROWS] for examples in sets]
    imputed, combined = _combined(game, secret, sides, fits)
    guesses = _guesses(secret, game.nonmembers, imputed[1], combined[1])
    threat = Threat(
        1, len(game.owned()), sees="1 answer about each example and all its other columns"
    )
    source = f"the answer beside those about {len(secret.candidates)} candidates"
    unread = _is_unread(game, secret)
    found = _findings(game, f"attribute.{secret.name}", guesses, threat, source, unread=unread)
    return (*found, *_told_alone(game, secret)) if game.is_vector else found


def _told_alone(game: Game, secret: Secret) -> tuple[Finding, ...]:
    guesses = _guesses(secret, game.nonmembers, *told_alone(game, secret))
    threat = Threat(1, len(game.owned()))
    source = "a logistic regression on the answer alone"
    value, gain = _findings(game, f"attribute_alone.{secret.name}", guesses, threat, source)
    note = value.note.partition(";")[0]
    return replace(value, note=f"{note}; the baseline guesses without the answer"), gain


def _inferred(game: Game, secret: Secret) -> tuple[Finding, ...]:
    sets = [game.owned(), game.members, game.nonmembers]
    scores = [_likeness(game, secret, examples) for examples in sets]
    sides = []
    for examples in sets:
        labels = game.labels(examples)
        if not game.gives_values:
            labels = one_hot(labels, game.classes)
        sides.append(torch.cat([secret.others(examples.inputs), labels], 1)[:MAX_ROWS])
    imputed, weighed = _combined(game, secret, sides, scores)
    by_bayes = weighed
    if not _is_unread(game, secret):  # a constant would break ties by its rounding alone
        pairs = zip(imputed, scores, strict=True)
        by_bayes = [guess + likeness[:, :, 0] for guess, likeness in pairs]
    trials = {
        rule: [_guesses(secret, sets[at], imputed[at], combined[at]) for at in (1, 2)]
        for rule, combined in (("learned weights", weighed), ("Bayes' rule", by_bayes))
    }
    best = max(trials, key=lambda rule: trials[rule][0].measured(trials[rule][0].attacked).value)
    confidence = 1 - (1 - CONFIDENCE) / len(trials)
    members, nonmembers = trials[best]
    count = len(secret.candidates)
    threat = Threat(
        count * (1 if game.shield.deterministic else MAX_QUERIES),
        len(sets[0]),
        sees="the true label and all other columns, and asks about candidates",
    )
    name = f"attribute_inference.{secret.name}"
    source = f"how sure {count} candidates make the model of the label, by {best}"
    on, on_again = members.gains(game.seed)
    off, off_again = nonmembers.gains(game.seed + 1)
    difference = Finding.of(
        f"{name}.members_over_nonmembers",
        _spread(on - off, on_again - off_again, confidence),
        samples=len(members.truth) + len(nonmembers.truth),
        baseline=0.0,
        threat=threat,
        source=source,
    )
    unread = _is_unread(game, secret)
    return (*_findings(game, name, members, threat, source, confidence, unread=unread), difference)


def _fit(game: Game, secret: Secret, examples: Examples, scale: dict[str, Tensor]) -> Tensor:
    """Says how well the answer with each value fits the answer that was seen, in every reading.

    Closeness is measured by the square of the distance, which is right for noise, and by its
    logarithm, which is right for answers that repeat themselves.

    Shapes: scale, the auxiliary answers in every reading -> (rows, values, features).
    """
    seen = game.views(game.ask(examples).first(MAX_ROWS))
    tried = game.views(game.own_answers(secret.tried(examples)))
    closeness = []
    for name, view in seen.items():
        _, answer = standardize(scale[name], view)
        _, others = standardize(scale[name], tried[name])
        apart = answer.repeat_interleave(len(secret.candidates), 0) - others
        distance = apart.double().square().mean(1)
        closeness += [-distance, -(distance + _SAME).log()]
    return secret.by_value(torch.stack(closeness, 1))


def _likeness(game: Game, secret: Secret, examples: Examples) -> Tensor:
    """Scores each value by how sure the model then is of the label; log p of it comes first.

    Shapes: -> (rows, values, features).
    """
    answers = game.own_answers(secret.tried(examples))
    labels = game.labels(examples)[:MAX_ROWS].repeat_interleave(len(secret.candidates), 0)
    if game.gives_values:
        return secret.by_value(_densities(game, answers, labels))
    log_p = log_probabilities(answers)
    own = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    scores = torch.stack([own, *membership_scores(log_p, labels).values()], 1)
    return secret.by_value(scores.clamp(_MIN_LOG_P, -_MIN_LOG_P))


def _densities(game: Game, answers: Answers, targets: Tensor) -> Tensor:
    """Says how close a regression's answers lie to the targets; the log density comes first.

    Shapes: targets (rows, outputs) -> (rows, features).
    """
    queries = 1 if game.shield.deterministic else MAX_QUERIES
    loss = Residuals.of(game, queries).signals(answers.distribution, targets)["loss"]
    log_p = loss * targets.shape[1] / 2
    readings = torch.stack([log_p, -loss.neg().sqrt(), -(_SAME - loss).log()], 1)
    return readings.clamp(_MIN_LOG_P, -_MIN_LOG_P)


def _combined(
    game: Game, secret: Secret, sides: list[Tensor], evidence: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Imputes from the sides, then weighs the evidence in; both are learned on the first set.

    Shapes: a list holds one part for each set; sides (rows, columns), evidence (rows, values,
    features) -> (rows, values) log p of the imputation and of both together.
    """
    truth = secret.truth(game.owned().inputs[:MAX_ROWS])
    sizes = [len(side) for side in sides]
    padded = [pad(side, (1, 0)) for side in sides]
    table = torch.cat([standardize(padded[0], side)[1] for side in padded]).double()
    table[:, 0] = 1  # the constant
    often = (truth.bincount(minlength=secret.count).double() + 0.5).log()
    imputed = learned(
        lambda weights, rows: often + table[rows] @ weights.reshape(-1, secret.count),
        table.shape[1] * secret.count,
        truth,
        len(table),
        seed=game.seed,
    )
    if _is_unread(game, secret):  # every value gets the same answer: there is no evidence
        return list(imputed.split(sizes)), list(imputed.split(sizes))
    told = torch.cat([values - values.mean(1, keepdim=True) for values in evidence])
    unit = told[: len(truth)].square().mean((0, 1)).sqrt()
    told = (told / unit.where(unit > _MIN_UNIT, 1.0)).clamp(-10, 10)
    each = torch.eye(secret.count, dtype=told.dtype).expand(len(told), -1, -1)
    told = torch.cat([told, imputed.unsqueeze(2), each], 2)
    combined = learned(
        lambda weights, rows: imputed[rows] + told[rows] @ weights,
        told.shape[2],
        truth,
        len(told),
        seed=game.seed + 1,
        doubt=1.0,  # evidence from nothing but noise would make the imputation worse
    )
    return list(imputed.split(sizes)), list(combined.split(sizes))


def _is_unread(game: Game, secret: Secret) -> bool:
    """Returns whether the model does not read the column."""
    model = game.shield.model
    return isinstance(model, ReadsFirst) and min(secret.places) >= model.width


def _guesses(secret: Secret, examples: Examples, imputed: Tensor, attacked: Tensor) -> Guesses:
    truth = secret.truth(examples.inputs[:MAX_ROWS])
    seen = truth >= 0
    guesses = Guesses(truth[seen], imputed[seen], attacked[seen])
    counts = guesses.truth.bincount(minlength=secret.count)
    if len(guesses.truth) < MIN_ROWS or (secret.count == 2 and int(counts.min()) < 2):
        raise NotApplicable(f"too few {examples.name} have values that can be told apart")
    return guesses


def _findings(
    game: Game,
    name: str,
    guesses: Guesses,
    threat: Threat,
    source: str,
    confidence: float = CONFIDENCE,
    *,
    unread: bool = False,
) -> tuple[Finding, Finding]:
    count = guesses.imputed.shape[1]
    unit = "AUC" if count == 2 else f"accuracy over {count} values"
    baseline = guesses.measured(guesses.imputed).value
    less = f"{unit}, less {baseline:.3f} without the model"
    if unread:
        less = f"{less}; {UNREAD}"
    elif torch.allclose(guesses.attacked, guesses.imputed):
        less = f"{less}; {NO_USE}"
    return (
        Finding.of(
            name,
            guesses.measured(guesses.attacked, confidence),
            samples=len(guesses.truth),
            baseline=baseline,
            threat=threat,
            source=source,
            note=f"{unit}; the baseline guesses from the other columns without the model",
        ),
        Finding.of(
            f"{name}.gain",
            _spread(*guesses.gains(game.seed), confidence),
            samples=len(guesses.truth),
            baseline=0.0,
            threat=threat,
            source=source,
            note=less,
        ),
    )


def _spread(value: float, resampled: Resampled, confidence: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)))
