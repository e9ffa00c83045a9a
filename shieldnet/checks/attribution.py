"""Which features an answer gives away, from Captum's Jacobian rows and a linear-Gaussian model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.decoders import KernelRidge, Ridge
from shieldnet.attacks.adversary.features import Parts, Words, secret_of, standardize
from shieldnet.attacks.adversary.label_baseline import label_means
from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.adversary.selection import MIN_ROWS
from shieldnet.attacks.answers import Behind, in_batches
from shieldnet.attacks.base import Game, require_real_inputs
from shieldnet.checks.base import Check
from shieldnet.checks.embeddings import FromEmbeddings
from shieldnet.core.statistics import CONFIDENCE, Interval
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import Metric

_FOLDS = 10
_MIN_ROWS, _MAX_ROWS, _MAX_PRODUCTS = 500, 2000, 10**10  # rows, features, classes squared
_MAX_ENTRIES = 5 * 10**7  # of the largest array (400 MB): classes squared times features or rows
_MIN_FIT = 0.5  # of the scores' variance within classes, explained by the linear model
_MAX_SPREAD = 0.25  # an estimate known less well than this says nothing


@dataclass(frozen=True)
class Attribution(Check):
    """Draws the leak map of a shield and estimates its inversion leakage, in about a second.

    Around the mean input of each class c the model is linear, z = J_c x, with rows J_c from
    Captum, made as steep as the scores are in the mean over all rows; what the scores then still
    differ from it counts as noise. An answer tells z up to noise of covariance N in all, so that
    within the class it explains S_c J_c^T (J_c S_c J_c^T + N)^-1 J_c S_c of the inputs' covariance
    S_c. The diagonals are the leak map; their share of the total, less what the answer loses of the
    label itself, estimates the leakage that ``Inversion`` measures. N is found by predicting the
    clean scores from the released answers: N = V (V - R)^-1 V - V with V their covariance and R
    what stays unexplained. S_c is never written out, and no row is multiplied by itself where
    S_c J_c^T is squared: with more features than rows that alone would look like leakage.

    Texts are read as the words that occur in them; the model is then linear in the embeddings of
    their tokens, and x z^T of word and score takes the place of S_c J_c^T.

    Attributions are taken on the model behind the shield: through a rounding shield they read 0.
    A magnitude map (Saliency) is not a leak map; plain pixel variance is the null map beside it.
    It is a screen for tuning, never a verdict: the decoders have the last word.

    Errors: NotApplicable where the model has no gradient or is too curved, there are too many
        classes and features, or too few rows to know the estimate to a quarter.
    Source: linear Bayes estimation (Kay 1993, chapter 12); the jackknife over ten folds.
    """

    metrics = (
        Metric(
            "attribution.estimate",
            "leakage, estimated",
            "more",
            ungated="it is an estimate for tuning: what the inversion attack measured is judged",
        ),
    )

    def __call__(self, game: Game) -> Outcome:
        game.require_classes()
        auxiliary = game.owned()
        game.require_rows(MIN_ROWS, auxiliary)
        secret = secret_of(auxiliary.inputs, auxiliary.packing)
        if isinstance(secret, Parts) and not (secret.are_words or secret.are_numbers):
            require_real_inputs(auxiliary)
        features = secret.apply(auxiliary.inputs[:1]).shape[1]
        if features == 0:
            raise NotApplicable("no word tells one text from another")
        most = _MAX_PRODUCTS // (features * game.classes**2)
        rows = min(len(auxiliary), max(_MIN_ROWS, min(_MAX_ROWS, most)))
        if game.classes**2 * max(features, rows) > _MAX_ENTRIES:
            raise NotApplicable(f"{features} features and {game.classes} classes are too many")
        model = _Linearized.of(game, secret, rows)
        if not model.fit >= _MIN_FIT:
            raise NotApplicable(
                f"the model is curved: a linear approximation within each class explains "
                f"{model.fit:.0%} of the variance of its scores, and {_MIN_FIT:.0%} is required"
            )
        explained, total, lost = model.estimate(torch.ones(rows, dtype=torch.bool))
        places = _read_best(secret, explained, total, lost)
        value = _share(explained, total, lost, places)
        spread = _jackknife(model, rows, places)
        if not spread <= _MAX_SPREAD:
            raise NotApplicable(
                f"{rows} auxiliary rows of {features} features and {game.classes} classes leave "
                f"the estimate within +-{spread:.2f} alone"
            )
        share = torch.where(total > 0, explained.clamp_min(0) / total.clamp_min(1e-30), 0.0)
        return Outcome(
            findings=(
                Finding.of(
                    "attribution.estimate",
                    Interval(value, value - spread, value + spread),
                    samples=rows,
                    baseline=0.0,
                    threat=Threat(auxiliary=rows, white_box=True),
                    source="linear Bayes on Captum Jacobian rows",
                    note=f"an estimate for tuning, the inversion attack is the verdict; the linear "
                    f"model explains {model.fit:.0%} of the scores",
                ),
            ),
            features={
                "leak map": secret.shaped(share.float()),
                "null map": secret.shaped(total.float()),
            },
        )


def require_gradient(game: Game, inputs: Tensor) -> None:
    """Raises NotApplicable where Captum cannot take a gradient."""
    require_real_inputs(game.nonmembers)
    parameter = next(game.shield.model.parameters(), inputs)
    with torch.enable_grad():
        point = inputs[:1].to(parameter.device).detach().clone().requires_grad_()
        if not Behind(game.shield)(point).requires_grad:
            raise NotApplicable("the model's output has no gradient with respect to its input")


class _LogScores(nn.Module):
    """Reads a model of probabilities as one of logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        probabilities: Tensor = self.model(inputs)
        return probabilities.clamp_min(1e-30).log()


def jacobian_rows(model: nn.Module, inputs: Tensor, classes: int) -> Tensor:
    """Returns the gradient of every centered score, by Captum.

    Softmax ignores a shift, so the mean over classes is taken off.

    Shapes: inputs (rows, ...) -> (rows, classes, features) float64 on the CPU.
    """
    from captum.attr import Saliency

    parameter = next(model.parameters(), inputs)
    point = inputs.to(parameter.device).detach().clone().requires_grad_()
    saliency = Saliency(model)
    rows = [
        saliency.attribute(point, target=target, abs=False).detach().flatten(1).cpu().double()
        for target in range(classes)
    ]
    stacked = torch.stack(rows, 1)
    return stacked - stacked.mean(1, keepdim=True)


@dataclass(frozen=True)
class _Linearized:
    """The model, linear around each class mean, and the answers about the auxiliary rows.

    Shapes: labels (n,); inputs (n, d), scaled, or words; within and squares, less the mean of their
    class; scores and released (n, ...); rows (K, K, d); told (K, n, K), what each class's rows say
    of each input; gains (K, d, K), sums over all inputs of the input times what the answer reveals
    of it; curved (n, K), what the linear model misses of the scores. fit: the share that it does
    not miss.
    """

    inputs: Tensor
    labels: Tensor
    scores: Tensor
    released: Tensor
    within: Tensor
    rows: Tensor
    told: Tensor
    gains: Tensor
    curved: Tensor
    squares: Tensor
    fit: float

    @classmethod
    def of(cls, game: Game, secret: Scale | Words | Parts, count: int) -> "_Linearized":
        owned = game.owned()
        auxiliary = owned.inputs[:count]
        inputs = secret.apply(auxiliary).double()
        labels = game.model_labels(owned)[:count]
        answers = game.ask(owned).first(count)
        winner = nn.functional.one_hot(answers.distribution.argmax(-1), game.classes)
        released = torch.cat([*game.views(answers).values(), winner], -1)
        within = inputs - label_means(labels, inputs, game.classes)[labels]
        if isinstance(secret, Scale) or (isinstance(secret, Parts) and secret.are_numbers):
            rows, felt = _by_features(game, secret, labels, inputs, auxiliary), within
        else:
            rows, felt = _by_embeddings(game, labels, auxiliary)
        scores = _centered(in_batches(_scores_of(game, Behind(game.shield)), auxiliary).double())
        spread = scores - label_means(labels, scores, game.classes)[labels]
        own = _told(felt, rows, labels)
        rows = (torch.linalg.pinv(own, rtol=1e-6) @ spread).T @ rows
        told = felt @ rows.transpose(1, 2)
        gains = within.T @ told
        curved = spread - told[labels, torch.arange(len(labels))]
        fit = 1 - float(curved.square().sum() / spread.square().sum().clamp_min(1e-30))
        squares = within.square()
        return cls(
            inputs,
            labels,
            scores,
            released.float(),
            within,
            rows,
            told,
            gains,
            curved,
            squares,
            fit,
        )

    def estimate(self, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns explained and total variance per feature, and the label's loss of each (summed).

        Shapes: keep (n,) bool -> each (d,).
        """
        labels, kept = self.labels[keep], keep.nonzero().flatten()
        classes, count = self.rows.shape[0], len(kept)
        means = label_means(labels, self.inputs[keep], classes)
        noise, label_error = self._noise(keep, labels, classes)
        noise = noise + self.curved[keep].T @ self.curved[keep] / count
        features, left_out = self.within.shape[1], self.within[~keep].T
        explained = torch.zeros(features, dtype=torch.float64)
        by_itself, whole = torch.zeros(2, len(self.within), dtype=torch.float64)
        for label, own in enumerate(torch.bincount(labels, minlength=classes).tolist()):
            if own == 0:
                continue
            # A class with few rows for its many features borrows the covariance of all.
            borrowed = features / (features + 10 * own)
            told, mine, share = self.told[label], kept[labels == label], own / count
            pooled = (self.gains[label] - left_out @ told[~keep]) / count
            gain = borrowed * pooled + (1 - borrowed) / own * self.within[mine].T @ told[mine]
            weights = borrowed / count * keep.double()
            weights[mine] += (1 - borrowed) / own
            gram = (told.T * weights) @ told
            solved = torch.linalg.pinv(gram + noise, rtol=1e-9, hermitian=True)
            pairs = 1 - weights.square().sum()
            explained += share / pairs * (gain @ solved * gain).sum(1)
            by_itself += share / pairs * weights.square() * (told @ solved * told).sum(1)
            whole += share * weights
        explained -= by_itself @ self.squares
        return explained, whole @ self.squares, (label_error @ means * means).sum(0)

    def _noise(self, keep: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Returns covariances: of the answers' noise on the scores, of what they hide of the label.

        Shapes: -> (K, K), (K, K).
        """
        scores, released = self.scores[keep], self.released[keep]
        spread = scores - label_means(labels, scores, classes)[labels]
        signal = spread.T @ spread / len(spread)
        hot = nn.functional.one_hot(labels, classes).double()
        guesses = _predicted(released, torch.cat([scores, hot], 1))
        open_scores = _least([guess[:, :classes] for guess in guesses], scores)
        named = released[:, -classes:].double()
        open_labels = _least([*(guess[:, classes:] for guess in guesses), named], hot)
        known = signal - open_scores.T @ open_scores / len(open_scores)
        values, vectors = torch.linalg.eigh(known)
        least = 1e-6 * signal.trace().clamp_min(1e-30)
        inverse = (vectors / values.clamp_min(least)) @ vectors.T
        noise = signal @ inverse @ signal - signal
        values, vectors = torch.linalg.eigh((noise + noise.T) / 2)
        noise = (vectors * values.clamp_min(1e-6)) @ vectors.T
        return noise, open_labels.T @ open_labels / len(open_labels)


def _scores_of(game: Game, model: nn.Module) -> nn.Module:
    """Reads a model's scores as logits."""
    is_probability = game.shield.chain.layout.row_kind == "probabilities"
    return _LogScores(model) if is_probability else model


def _by_features(
    game: Game, scale: Scale | Parts, labels: Tensor, inputs: Tensor, auxiliary: Tensor
) -> Tensor:
    """Returns the model's gradient at the mean input of each class. Shapes: -> (K, K, d)."""
    require_gradient(game, auxiliary)
    means = label_means(labels, inputs, game.classes)
    points = scale.undo(means).reshape(-1, *auxiliary.shape[1:]).to(auxiliary.dtype)
    model = _scores_of(game, Behind(game.shield))
    return jacobian_rows(model, points, game.classes) * scale.deviation.double()


def _by_embeddings(game: Game, labels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient at the mean embedding of each class, and the embeddings less that.

    Shapes: tokens (n, length) -> (K, K, length * width), (n, length * width).
    """
    parameter = next(game.shield.model.parameters(), tokens)
    classes = torch.arange(game.classes).unsqueeze(1)
    typical = (labels == classes).int().argmax(1)  # a row of each class, the first without one
    model = FromEmbeddings.of(
        game.shield, tokens[typical].to(parameter.device), game.owned().packing
    )
    felt = model.embedded(tokens)
    flat = felt.double()
    if game.classes**2 * flat.shape[1] > _MAX_ENTRIES:
        raise NotApplicable(f"{flat.shape[1]} numbers of embeddings are too many")
    means = label_means(labels, flat, game.classes)
    points = means.to(felt.dtype)
    rows = jacobian_rows(_scores_of(game, model), points, game.classes)
    return rows, flat - means[labels]


def _told(within: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Returns what the rows of each input's own class say of it. Shapes: -> (n, K)."""
    told = within.new_empty(len(within), rows.shape[1])
    for label in labels.unique().tolist():
        mine = labels == label
        told[mine] = within[mine] @ rows[label].T
    return told


def _predicted(released: Tensor, wanted: Tensor) -> list[Tensor]:
    """Predicts ``wanted`` from answers on held-out halves, linearly and by kernel.

    Shapes: released (n, f), wanted (n, k) -> each (n, k).
    """
    half = torch.arange(len(released)) % 2 == 0
    decoders = ((Ridge(), (1e-2,)), (KernelRidge(), (1.0, 1e-1)))
    guesses = [torch.empty_like(wanted) for _ in decoders]
    for learn, judge in ((half, ~half), (~half, half)):
        features, questions = standardize(released[learn], released[judge])
        for guess, (decoder, setting) in zip(guesses, decoders, strict=True):
            told = decoder.predict(features, wanted[learn].float(), questions, setting)
            guess[judge] = told.double()
    return guesses


def _least(guesses: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """Returns what the best guess misses. Shapes: each (n, k) -> (n, k)."""
    return min(
        (guess - wanted for guess in guesses),
        key=lambda difference: float(difference.square().sum()),
    )


def _share(explained: Tensor, total: Tensor, lost: Tensor, places: Tensor) -> float:
    return float((explained - lost)[places].sum() / total[places].sum().clamp_min(1e-30))


def _read_best(
    secret: Scale | Words | Parts, explained: Tensor, total: Tensor, lost: Tensor
) -> Tensor:
    """Returns the features of the most exposed input, as ``Inversion`` reports it."""
    every = torch.arange(len(total))
    if not isinstance(secret, Parts):
        return every
    inputs: list[Tensor] = [places for places in every.split(secret.sizes) if len(places)]
    shares = [_share(explained, total, lost, places) for places in inputs]
    return inputs[shares.index(max(shares))]


def _jackknife(model: _Linearized, rows: int, places: Tensor) -> float:
    """Returns the half-width of the estimate's interval: it is redone without each fold."""
    from scipy.stats import t

    folds = torch.arange(rows) % _FOLDS
    values: Sequence[float] = [
        _share(*model.estimate(folds != fold), places) for fold in range(_FOLDS)
    ]
    variance = (_FOLDS - 1) / _FOLDS * sum((v - sum(values) / _FOLDS) ** 2 for v in values)
    return float(t.ppf((1 + CONFIDENCE) / 2, _FOLDS - 1)) * math.sqrt(variance)


def _centered(scores: Tensor) -> Tensor:
    return scores - scores.mean(-1, keepdim=True)
