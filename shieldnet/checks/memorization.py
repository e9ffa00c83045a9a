"""Which training records has the model memorized? Measured by Captum's self-influence."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shieldnet.attacks.answers import Behind, in_batches
from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.attack import MIN_ROWS
from shieldnet.attacks.membership.residuals import Residuals
from shieldnet.checks.base import Check
from shieldnet.core.statistics import CONFIDENCE, Interval, auc
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat, decimals
from shieldnet.findings.metrics import Metric
from shieldnet.outputs.layout import ROW_KINDS

TOP = 0.05
"""Of the members, those with the largest self-influence."""

_PROBES = 16  # rows on which a layer must give what the model gives
_BATCH = 4096  # rows of features that Captum gets at once
_SOURCE = "self-influence, Captum's TracInCPFast with the model at hand as its only checkpoint"
_THREAT = Threat(white_box=True, sees="the gradients of the last layer")


@dataclass(frozen=True)
class Memorization(Check):
    """Measures how much a step on a record alone would lower the record's own loss.

    That is the record's self-influence: the squared gradient of its loss with respect to the
    weights of the last linear layer (its bias left out), as Captum's TracInCPFast computes it; the
    loss of a regression is the squared error.
    TracIn adds this up over the checkpoints of a training; there is one here, the model at hand,
    so what a record did early on is not seen.

    ``memorization.top_share``: the share of all self-influence that the top 5% of the members
    hold. It is 0.05 where all members are alike and never less, so its interval cannot hold the
    baseline. Any model that is sure of most records and wrong on a few has a large one, also where
    it never saw them: compare it with the nonmembers' share, which the note gives.
    ``memorization.canaries``: the AUC of planted canaries against members; larger says canary.
    ``memorization.members``: the AUC of members against nonmembers; smaller says member, because
    a model that memorized its records has nothing left to learn from them.

    NOT promised: that a large self-influence is memorization. It finds the records that the model
    fits least, and a mislabeled record that never trained the model has more of it than one that
    did. Canaries planted many times over may have less of it than members.
    Errors: NotApplicable without labels, or where the scores do not come from one linear layer.
    Source: Pruthi et al. 2020 (arXiv:2002.08484), section 4 and appendix F; Feldman and Zhang 2020
    (arXiv:2008.03703) for memorization as a record's influence on itself; percentile bootstrap
    over the members, Efron and Tibshirani 1993, chapter 13.
    """

    metrics = tuple(
        Metric(
            f"memorization.{attribution}",
            title,
            "more",
            ungated="it says on whom the model leans, not what answers tell: membership is judged",
        )
        for attribution, title in (
            ("top_share", "influence of the top 5%"),
            ("members", "members by their influence"),
            ("canaries", "canaries by their influence"),
        )
    )
    resamples: int = 1000

    def __call__(self, game: Game) -> Outcome:
        game.require_answers_to_labels()
        head = _Head.of(game)
        members, nonmembers = (
            head.of_rows(game, examples) for examples in (game.members, game.nonmembers)
        )
        if not members.any():
            raise NotApplicable("the model is so sure of every member that all gradients are 0")
        findings = [
            Finding.of(
                "memorization.top_share",
                top_share(members, seed=game.seed, resamples=self.resamples),
                samples=len(members),
                baseline=TOP,
                threat=_THREAT,
                source=_SOURCE,
                note=f"held by the top {TOP:.0%} of the members; of the nonmembers' by theirs: "
                f"{decimals(_share_of_top(nonmembers))}",
            ),
            Finding.of(
                "memorization.members",
                auc(-members, -nonmembers),
                samples=len(members) + len(nonmembers),
                baseline=0.5,
                threat=_THREAT,
                source=_SOURCE,
                note="members against nonmembers; less self-influence says member",
            ),
        ]
        untested = []
        if game.canaries is not None:
            planted = game.canaries.planted
            if len(planted) < MIN_ROWS:
                untested.append(
                    f"memorization.canaries: needs {MIN_ROWS} planted canaries, "
                    f"there are {len(planted)}"
                )
            else:
                findings.append(_canaries(head.of_rows(game, planted), members))
        return Outcome(findings=tuple(findings), untested=tuple(untested))


def _canaries(planted: Tensor, members: Tensor) -> Finding:
    ranked = auc(planted, members)
    finds = "finds" if ranked.low > 0.5 else "does not find"
    return Finding.of(
        "memorization.canaries",
        ranked,
        samples=len(planted) + len(members),
        baseline=0.5,
        threat=_THREAT,
        source=_SOURCE,
        note=f"does self-influence find the canaries? It {finds} them among the members",
    )


@dataclass(frozen=True)
class _Head:
    """A copy of a model, and which of the copy's linear layers gives the scores."""

    behind: Behind
    layer: nn.Linear

    @classmethod
    def of(cls, game: Game) -> "_Head":
        """Copies the game's model and finds its final linear layer, or raises NotApplicable.

        The last layer of the right width is taken whose output states what the model's does, on a
        few members.
        """
        layout = game.shield.chain.layout
        width = 1 if layout.kind in ROW_KINDS else game.ask(game.members).distribution.shape[-1]
        if not any(_fits(module, width) for module in game.shield.model.modules()):
            raise NotApplicable("the model has no final linear layer")
        try:
            behind = copy.deepcopy(Behind(game.shield))  # hooks go on a copy of the model
        except (RuntimeError, TypeError) as refused:
            raise NotApplicable(f"the model cannot be copied: {refused}") from refused
        inputs = game.members.inputs[:_PROBES]
        for layer in reversed(
            [module for module in behind.modules() if isinstance(module, nn.Linear)]
        ):
            if not _fits(layer, width):
                continue
            head = cls(behind, layer)
            features, scores = head.features(inputs)
            if len(features) == len(scores) and features.dim() == 2:
                stated = alone(layer)(features).detach()
                if _state_the_same(stated, scores, layout.row_kind, layer.weight.dtype):
                    return head
        raise NotApplicable("the model has no final linear layer: something else gives its scores")

    def of_rows(self, game: Game, examples: Examples) -> Tensor:
        """Returns the self-influence of labeled examples. Shapes: -> (rows,) float64."""
        labels = game.labels(examples)
        game.require_rows(MIN_ROWS, examples)
        features, _ = self.features(examples.inputs)
        if game.gives_values:
            unit = Residuals.of(game, 1).unit
            return self_influence(in_units(self.layer, unit), features, labels / unit)
        return self_influence(alone(self.layer), features, labels)

    def features(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the layer reads, and the model's scores.

        Shapes: inputs (rows, ...) -> (rows, features) float64, (rows, classes), both on the CPU.
        """
        read: list[Tensor] = []

        def note(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            (inputs,) = (*args, *kwargs.values())
            read.append(inputs.detach().cpu().double())

        hook = self.layer.register_forward_pre_hook(note, with_kwargs=True)
        try:
            scores = in_batches(self.behind, inputs)
        finally:
            hook.remove()
        return torch.cat(read) if read else torch.empty(0), scores


def self_influence(head: nn.Linear, features: Tensor, labels: Tensor) -> Tensor:
    """Returns the squared gradient of every record's loss in the layer's weights, by Captum.

    head: gives logits, one binary logit, or the values of a regression.
    Shapes: features (rows, features), labels (rows,) int64 or (rows, outputs) -> (rows,).
    """
    from captum.influence import TracInCPFast

    loss: nn.Module = nn.CrossEntropyLoss(reduction="sum")
    if labels.dim() == 2:
        loss = nn.MSELoss(reduction="sum")
    elif head.out_features == 1:
        loss, labels = nn.BCEWithLogitsLoss(reduction="sum"), labels.to(features).unsqueeze(1)
    # A loader without a generator of its own draws from the global one, and so would Captum's.
    rows = DataLoader(TensorDataset(features, labels), _BATCH, generator=torch.Generator())
    with torch.enable_grad():
        tracin = TracInCPFast(
            head,
            head,
            rows,
            checkpoints=iter([head]),
            checkpoints_load_func=lambda model, checkpoint: 1.0,  # the learning rate
            loss_fn=loss,
        )
        influence: Tensor = tracin.self_influence(outer_loop_by_checkpoints=True)
    return influence.detach()


def in_units(layer: nn.Linear, unit: Tensor) -> nn.Linear:
    """Returns a double-precision copy whose outputs are in these units. Shapes: unit (outputs,)."""
    head = alone(layer)
    head.weight = nn.Parameter(head.weight.detach() / unit.unsqueeze(1))
    if layer.bias is not None:
        head.bias = nn.Parameter(head.bias.detach() / unit)
    return head


def alone(layer: nn.Linear) -> nn.Linear:
    """Returns a linear layer with the same weights in double precision, without hooks, on the CPU.

    Near certainty a gradient is the difference of two numbers close to 1.
    """
    head = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    head.weight = nn.Parameter(layer.weight.detach().cpu().double())
    if layer.bias is not None:
        head.bias = nn.Parameter(layer.bias.detach().cpu().double())
    return head


def top_share(values: Tensor, *, seed: int, resamples: int) -> Interval:
    """Estimates the share of the sum that the largest 5% hold, with a bootstrap interval.

    Where 5% is not a whole number of rows, a fraction of the next row counts.
    Shapes: values (rows,) >= 0, not all 0.
    """
    count = len(values)
    ordered = values.sort(descending=True).values.double().numpy()
    generator = np.random.default_rng(seed)
    drawn = [
        _share(ordered, np.bincount(generator.integers(count, size=count), minlength=count))
        for _ in range(resamples)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(_share_of_top(values), float(low), float(high))


def _share_of_top(values: Tensor) -> float:
    return _share(values.sort(descending=True).values.double().numpy(), np.ones(len(values)))


def _share(ordered: np.ndarray, times: np.ndarray) -> float:
    """Returns the share of the largest 5% where every row counts so many times; 0 of nothing.

    Shapes: ordered (rows,) from large to small, times (rows,).
    """
    before = times.cumsum() - times
    taken = np.clip(TOP * len(ordered) - before, 0, times)
    # No dot product: the threads of a BLAS take longer to wake than this does.
    return float((taken * ordered).sum()) / max(float((times * ordered).sum()), 1e-300)


def _fits(module: nn.Module, width: int) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == width


def _state_the_same(answers: Tensor, scores: Tensor, kind: str, dtype: torch.dtype) -> bool:
    """Returns whether a layer's logits state the distributions that the model's scores state.

    Shapes: answers (rows, classes) or (rows, 1), scores (rows, classes).
    """
    logits = (
        torch.cat([torch.zeros_like(answers), answers], -1) if answers.shape[-1] == 1 else answers
    )
    rounding = 64 * torch.finfo(dtype).eps
    if kind == "values":
        return torch.allclose(answers, scores.double(), rtol=rounding, atol=rounding)
    if kind == "probabilities":
        return bool((logits.softmax(-1) - scores).abs().max() <= rounding)
    missed = (logits.log_softmax(-1) - scores.double().log_softmax(-1)).abs().max()
    return bool(missed <= rounding * max(1.0, float(logits.abs().max())))
