"""Which features an answer gives away, from Captum's Jacobian rows and a linear-Gaussian model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.attacks.base import Attack, Behind, Game, in_batches
from shieldnet.attacks.decoders import KernelRidge, Ridge
from shieldnet.attacks.inversion import Scale, label_means, standardize
from shieldnet.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.statistics import CONFIDENCE, Interval

_FOLDS = 10
MAX_ENTRIES = 10**8
"""Of the largest matrix (800 MB): covariances grow with the features squared."""


@dataclass(frozen=True)
class Attribution(Attack):
    """Draws the leak map of a shield and estimates its inversion leakage, in about a second.

    Around the mean input of each class c the model is linear, z = J_c x, with rows J_c from
    Captum. An answer tells z up to noise of covariance N, so that within the class it explains
    S_c J_c^T (J_c S_c J_c^T + N)^-1 J_c S_c of the inputs' covariance S_c. The diagonals are the
    leak map; their share of the total, less what the answer loses of the label itself, estimates
    the leakage that ``Inversion`` measures. N is found by predicting the clean scores from the
    released answers: N = V (V - R)^-1 V - V with V their covariance and R what stays unexplained.

    Attributions are taken on the model behind the shield: through a rounding shield they read 0.
    A magnitude map (Saliency) is not a leak map; plain pixel variance is the null map beside it.
    It is a screen for tuning, never a verdict: the decoders have the last word.

    Errors: NotApplicable where the model has no gradient or the inputs have too many features.
    Source: linear Bayes estimation (Kay 1993, chapter 12); the jackknife over ten folds.
    """

    def __call__(self, game: Game) -> Outcome:
        game.require_classes()
        auxiliary = game.owned()
        require_gradient(game, auxiliary.inputs)
        model = _Linearized.of(game)
        explained, total, lost = model.estimate(torch.arange(len(auxiliary)))
        value = _share(explained, total, lost)
        spread = _jackknife(model, len(auxiliary))
        share = torch.where(total > 0, explained / total.clamp_min(1e-30), 0.0)
        scale = Scale.of(auxiliary.inputs)
        return Outcome(
            findings=(
                Finding.of(
                    "attribution.estimate",
                    Interval(value, value - spread, value + spread),
                    samples=len(auxiliary),
                    baseline=0.0,
                    threat=Threat(auxiliary=len(auxiliary), white_box=True),
                    source="linear Bayes on Captum Jacobian rows",
                    note="an estimate for tuning; the inversion attack is the verdict",
                ),
            ),
            features={
                "leak map": scale.shaped(share.float()),
                "null map": scale.shaped(total.float()),
            },
        )


def require_gradient(game: Game, inputs: Tensor) -> None:
    """Raises NotApplicable where Captum cannot take a gradient, or the matrices grow too large."""
    features = inputs[0].numel()
    if max(features, game.classes**2) * features > MAX_ENTRIES:
        raise NotApplicable(f"{features} features and {game.classes} classes are too many for it")
    if not inputs.is_floating_point():
        raise NotApplicable(f"inputs of {inputs.dtype} have no gradient")
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

    Shapes: inputs (n, d) scaled; labels (n,); scores and released (n, ...); rows (K, K, d).
    """

    inputs: Tensor
    labels: Tensor
    scores: Tensor
    released: Tensor
    rows: Tensor

    @classmethod
    def of(cls, game: Game) -> "_Linearized":
        auxiliary = game.owned()
        scale = Scale.of(auxiliary.inputs)
        inputs = scale.apply(auxiliary.inputs)
        labels = game.model_labels(auxiliary)
        answers = game.ask(auxiliary)
        winner = nn.functional.one_hot(answers.distribution.argmax(-1), game.classes)
        released = torch.cat([*game.views(answers).values(), winner], -1)
        points = scale.undo(label_means(labels, inputs, game.classes))
        points = points.reshape(-1, *auxiliary.inputs.shape[1:]).to(auxiliary.inputs.dtype)
        model: nn.Module = Behind(game.shield)
        if game.shield.chain.layout.row_kind == "probabilities":
            model = _LogScores(model)
        rows = jacobian_rows(model, points, game.classes) * scale.deviation.double()
        scores = in_batches(model, auxiliary.inputs).double()
        return cls(inputs.double(), labels, _centered(scores), released.float(), rows)

    def estimate(self, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns explained and total variance per feature, and the label's loss (all summed).

        Shapes: keep (m,) row numbers -> (d,), (d,), ().
        """
        inputs, labels, scores = self.inputs[keep], self.labels[keep], self.scores[keep]
        classes = self.rows.shape[0]
        means = label_means(labels, inputs, classes)
        within = inputs - means[labels]
        noise, label_error = self._noise(keep, scores, labels, classes)
        pooled = within.T @ within / len(within)
        explained, total = torch.zeros_like(pooled[0]), torch.zeros_like(pooled[0])
        for label, count in enumerate(torch.bincount(labels, minlength=classes).tolist()):
            if count == 0:
                continue
            own = within[labels == label]
            # A class with few rows for its many features borrows the pooled covariance.
            borrowed = len(pooled) / (len(pooled) + 10 * count)
            covariance = (1 - borrowed) * own.T @ own / count + borrowed * pooled
            rows = self.rows[label]
            gain = covariance @ rows.T
            solved = torch.linalg.pinv(rows @ gain + noise, rtol=1e-9, hermitian=True)
            share = count / len(labels)
            explained += share * (gain @ solved * gain).sum(-1)
            total += share * covariance.diagonal()
        return explained, total, (means.T @ label_error @ means).trace()

    def _noise(
        self, keep: Tensor, scores: Tensor, labels: Tensor, classes: int
    ) -> tuple[Tensor, Tensor]:
        """Returns covariances: of the answers' noise on the scores, of what they hide of the label.

        Shapes: -> (K, K), (K, K).
        """
        spread = scores - label_means(labels, scores, classes)[labels]
        signal = spread.T @ spread / len(spread)
        hot = nn.functional.one_hot(labels, classes).double()
        open_scores = _least_residual(self.released[keep], scores)
        open_labels = _least_residual(self.released[keep], hot)
        known = signal - open_scores.T @ open_scores / len(open_scores)
        values, vectors = torch.linalg.eigh(known)
        least = 1e-6 * signal.trace().clamp_min(1e-30)
        inverse = (vectors / values.clamp_min(least)) @ vectors.T
        noise = signal @ inverse @ signal - signal
        values, vectors = torch.linalg.eigh((noise + noise.T) / 2)
        noise = (vectors * values.clamp_min(1e-6)) @ vectors.T
        return noise, open_labels.T @ open_labels / len(open_labels)


def _least_residual(released: Tensor, wanted: Tensor) -> Tensor:
    """Predicts ``wanted`` from answers on held-out halves, linearly and by kernel; the better wins.

    Shapes: released (n, f), wanted (n, k) -> (n, k) residuals.
    """
    half = torch.arange(len(released)) % 2 == 0
    decoders = ((Ridge(), (1e-2,)), (KernelRidge(), (1.0, 1e-1)))
    tried = []
    for decoder, setting in decoders:
        residual = torch.empty_like(wanted)
        for learn, judge in ((half, ~half), (~half, half)):
            features, questions = standardize(released[learn], released[judge])
            guess = decoder.predict(features, wanted[learn].float(), questions, setting)
            residual[judge] = wanted[judge] - guess
        tried.append(residual)
    return min(tried, key=lambda residual: float(residual.square().sum()))


def _share(explained: Tensor, total: Tensor, lost: Tensor) -> float:
    return float((explained.sum() - lost) / total.sum().clamp_min(1e-30))


def _jackknife(model: _Linearized, rows: int) -> float:
    """Returns the half-width of the estimate's interval: it is redone without each fold."""
    from scipy.stats import t

    folds = torch.arange(rows) % _FOLDS
    values: Sequence[float] = [
        _share(*model.estimate((folds != fold).nonzero().flatten())) for fold in range(_FOLDS)
    ]
    variance = (_FOLDS - 1) / _FOLDS * sum((v - sum(values) / _FOLDS) ** 2 for v in values)
    return float(t.ppf((1 + CONFIDENCE) / 2, _FOLDS - 1)) * math.sqrt(variance)


def _centered(scores: Tensor) -> Tensor:
    return scores - scores.mean(-1, keepdim=True)
