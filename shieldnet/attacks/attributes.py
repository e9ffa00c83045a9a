"""Learning one column of a record from the others and the shield: a sex, an age, a diagnosis."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from shieldnet.attacks.adversary.features import standardize
from shieldnet.attacks.adversary.selection import MIN_ROWS
from shieldnet.attacks.answers import Answers
from shieldnet.attacks.answers_alone import told_alone
from shieldnet.attacks.base import MAX_QUERIES, Attack, Game
from shieldnet.attacks.imputing import combined, findings_of, guesses_of, is_unread, spread
from shieldnet.attacks.membership.attack import log_probabilities, membership_scores
from shieldnet.attacks.membership.residuals import Residuals
from shieldnet.attacks.positions.truth import holds_texts
from shieldnet.attacks.secrets import MAX_ROWS, Secret
from shieldnet.core.statistics import CONFIDENCE
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import MORE_ATTACKS, RELEASE_LESS, Limit, Metric

PARTS_OF_ATTRIBUTES = (".gain", ".members_over_nonmembers")
"""Endings of findings about a column."""

_MIN_LOG_P = -7.0  # p of about .001: a model that is surer than that is vain
_NAMED = (
    "name the column with --sensitive (sensitive=). The model need not read it: a column of the "
    "sets that the model ignores is kept beside it"
)
_SAME = 1e-8  # squared distance, in deviations of an answer, up to which answers are the same


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
                "what embeddings or values tell of a sensitive column to someone "
                "who knows nothing else",
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
                "decay, a smaller model).",
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
    if not game.sensitive and holds_texts(game.nonmembers):
        raise NotApplicable("texts have no columns")
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
    imputed, both = combined(game, secret, sides, fits)
    guesses = guesses_of(secret, game.nonmembers, imputed[1], both[1])
    threat = Threat(
        1, len(game.owned()), sees="1 answer about each example and all its other columns"
    )
    source = f"the answer beside those about {len(secret.candidates)} candidates"
    unread = is_unread(game, secret)
    found = findings_of(game, f"attribute.{secret.name}", guesses, threat, source, unread=unread)
    return (*found, *_told_alone(game, secret)) if game.is_vector else found


def _told_alone(game: Game, secret: Secret) -> tuple[Finding, ...]:
    guesses = guesses_of(secret, game.nonmembers, *told_alone(game, secret))
    threat = Threat(1, len(game.owned()))
    source = "a logistic regression on the answer alone"
    value, gain = findings_of(game, f"attribute_alone.{secret.name}", guesses, threat, source)
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
    imputed, weighed = combined(game, secret, sides, scores)
    by_bayes = weighed
    if not is_unread(game, secret):  # a constant would break ties by its rounding alone
        pairs = zip(imputed, scores, strict=True)
        by_bayes = [guess + likeness[:, :, 0] for guess, likeness in pairs]
    trials = {
        rule: [guesses_of(secret, sets[at], imputed[at], both[at]) for at in (1, 2)]
        for rule, both in (("learned weights", weighed), ("Bayes' rule", by_bayes))
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
        spread(on - off, on_again - off_again, confidence),
        samples=len(members.truth) + len(nonmembers.truth),
        baseline=0.0,
        threat=threat,
        source=source,
    )
    unread = is_unread(game, secret)
    return (
        *findings_of(game, name, members, threat, source, confidence, unread=unread),
        difference,
    )


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
