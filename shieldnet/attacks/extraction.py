"""Copying the model: a student learns from the shield's answers to say what the model says."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from shieldnet.attacks.adversary.decoders import Decoder, KernelRidge, Network, Ridge
from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.adversary.selection import MIN_ROWS
from shieldnet.attacks.answers import Answers
from shieldnet.attacks.base import Attack, Game, as_asked
from shieldnet.core.checks import whole
from shieldnet.core.statistics import proportion
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import MORE_ATTACKS, Limit, Metric

_LONG = (256.0, 600.0)  # hidden units and steps of a network that is trained longer
_READ_AS = ("p", "log p above 1e-3", "log p above 1e-8", "logits")
_MADE = 3  # inputs of the adversary's own making for each row that it owns
_JITTER = 0.5  # standard deviations that half of them lie off a row


@dataclass(frozen=True)
class Extraction(Attack):
    """Trains students on the shield's answers about the adversary's own rows and keeps the best.

    Every student learns every reading of the answers from which a label can be told. The best is
    chosen by how often it names the released winner of rows held back (a fifth), trained again
    with them, and scored once on the nonmembers. With its largest budget the adversary asks about
    all its rows; and about three times as many inputs of its own making (mixes of two rows, rows
    moved a little) unless that is worse on the rows held back.

    ``extraction.fidelity`` is the share of nonmembers of which the student says what the bare
    model says, ``extraction.accuracy`` the share of which it is right. The baseline is what the
    same students reach with the true labels of the auxiliary rows and no query; without labels,
    what naming the commonest label reaches. Fidelity at the baseline: the answers were no help.
    ``extraction.fidelity.<budget>`` is the same after fewer queries.

    budgets: numbers of queries; those from the number of auxiliary rows up are passed over.
    NOT promised: that a student of the model's own kind, or more queries, come no closer.
    Source: Tramèr et al. 2016; Orekondy, Schiele, Fritz 2019.
    """

    metrics = (
        Metric(
            "extraction.fidelity",
            "extraction fidelity",
            "more",
            Limit(
                "max_extraction_fidelity",
                0.90,
                "how often a copy of the model agrees with it",
                helps="No shield bounds extraction. Coarser answers slow it down, and limits on "
                "queries per client do more.",
                needs=MORE_ATTACKS,
            ),
            standards=(
                *("AISVS 11.1.3", "AISVS 11.2.2", "AISVS 11.3.2"),
                *("AML.T0005", "AML.T0024.002", "NISTAML.031"),
            ),
            headline=True,
        ),
        Metric(
            "extraction.fidelity.*",
            "extraction fidelity after {} queries",
            "more",
            ungated="the largest number of queries is judged",
            standards=("AISVS 11.2.2",),
        ),
        Metric(
            "extraction.accuracy",
            "accuracy of the copy",
            "more",
            ungated="a copy is judged by how far it is one, its fidelity",
        ),
    )
    budgets: tuple[int, ...] = (100,)
    students: tuple[Decoder, ...] = (Ridge(), KernelRidge(), Network())

    def __post_init__(self) -> None:
        for budget in self.budgets:
            whole("budget", budget, low=MIN_ROWS)

    def __call__(self, game: Game) -> Outcome:
        game.require_classes()
        owned, targets = game.owned(), game.nonmembers
        if owned.inputs.dim() == 2 and not owned.inputs.is_floating_point():
            raise NotApplicable(
                f"inputs of {owned.inputs.dtype} may be tokens, which no student reads"
            )
        game.require_rows(MIN_ROWS, owned)
        generator = torch.Generator().manual_seed(game.seed)
        order = torch.randperm(len(owned), generator=generator)
        scale = Scale.of(owned.inputs)
        unseen = scale.apply(targets.inputs)
        answered = TransferSet.of(game, owned, scale)
        model_labels = game.model_labels(targets)
        blind = self._without_queries(game, answered.features[order], order, unseen)

        def scored(name: str, labels: Tensor, truth: Tensor, queries: int, source: str) -> Finding:
            return Finding.of(
                name,
                proportion(int((labels == truth).sum()), len(truth)),
                samples=len(truth),
                baseline=float((blind == truth).double().mean()),
                threat=Threat(
                    1, len(owned), sees=f"{queries} answers about inputs of its own choice"
                ),
                source=f"{source}, {queries} queries",
            )

        findings = []
        for budget in sorted({few for few in self.budgets if few < len(owned)}):
            transfer = answered.at(order[:budget])
            fit, check = transfer.divided()
            best = max(self._trials(fit, check), key=lambda student: student.agreement)
            labels = best.predict(transfer, unseen)
            name = f"extraction.fidelity.{budget}"
            findings.append(scored(name, labels, model_labels, budget, str(best)))
        best, transfer = self._with_everything(game, answered.at(order), order, scale)
        labels, queries = best.predict(transfer, unseen), len(transfer.winners)
        whole_copy = [scored("extraction.fidelity", labels, model_labels, queries, str(best))]
        if targets.labels is not None:
            truth = game.labels(targets)
            whole_copy.append(scored("extraction.accuracy", labels, truth, queries, str(best)))
        return Outcome(findings=(*whole_copy, *findings))

    def _with_everything(
        self, game: Game, transfer: "TransferSet", order: Tensor, scale: Scale
    ) -> tuple["Student", "TransferSet"]:
        """Chooses the best student, and whether it learns from inputs of its own making too."""
        fit, check = transfer.divided()
        plain = list(self._trials(fit, check))
        best = max(plain, key=lambda student: student.agreement)
        rows = game.owned().inputs[order]
        if not rows.is_floating_point():
            return best, transfer
        more = fit.beside(
            TransferSet.of(game, synthetic_queries(rows[-len(fit.winners) :], game.seed), scale)
        )
        # The finalists only: a kernel over four times the rows costs more than all other trials.
        finalists = {}
        for student in sorted(plain, key=lambda student: student.agreement):
            finalists[type(student.decoder)] = student
        again = [
            rival
            for finalist in finalists.values()
            for rival in _compared(finalist.decoder, finalist.setting, more, check)
        ]
        rival = max(again, key=lambda student: student.agreement)
        if rival.agreement < best.agreement:
            return best, transfer
        return rival, transfer.beside(
            TransferSet.of(game, synthetic_queries(rows, game.seed), scale)
        )

    def _without_queries(
        self, game: Game, features: Tensor, order: Tensor, unseen: Tensor
    ) -> Tensor:
        """Says of the nonmembers what can be said without a query. Shapes: -> (rows,)."""
        owned = game.owned()
        if owned.labels is None:
            return game.model_labels(owned).mode().values.expand(len(unseen))
        labels = game.labels(owned)[order]
        truth = one_hot(labels, game.classes).float()
        transfer = TransferSet(features, {"true label": truth}, labels)
        best = max(self._trials(*transfer.divided()), key=lambda student: student.agreement)
        return best.predict(transfer, unseen)

    def _trials(self, fit: "TransferSet", check: "TransferSet") -> Iterator["Student"]:
        for decoder in self.students:
            longer = (_LONG,) if isinstance(decoder, Network) else ()
            for setting in (*decoder.settings, *longer):
                yield from _compared(decoder, setting, fit, check)


@dataclass(frozen=True)
class TransferSet:
    """Holds what a student learns from: inputs, and the answers about them in every reading.

    Shapes: features (rows, f) standardized; readings, each (rows, classes), whose largest score
    names the label; winners (rows,) the labels that were released.
    """

    features: Tensor
    readings: dict[str, Tensor]
    winners: Tensor

    @classmethod
    def of(cls, game: Game, examples: Examples, scale: Scale) -> "TransferSet":
        """Asks the shield once about each of the examples."""
        answers = game.ask(examples)
        winners = answers.distribution.argmax(-1)
        features = scale.apply(as_asked(game.shield, examples.inputs))
        return cls(features, _readings(game, answers, winners), winners)

    def at(self, rows: Tensor) -> "TransferSet":
        """Keeps the rows at these places, in this order."""
        readings = {name: scores[rows] for name, scores in self.readings.items()}
        return TransferSet(self.features[rows], readings, self.winners[rows])

    def divided(self) -> tuple["TransferSet", "TransferSet"]:
        """Holds back the first fifth: what to learn from, and what to choose by."""
        rows = torch.arange(len(self.winners))
        return self.at(rows[len(rows) // 5 :]), self.at(rows[: len(rows) // 5])

    def beside(self, other: "TransferSet") -> "TransferSet":
        """Returns both, this one first."""
        readings = {
            name: torch.cat([scores, other.readings[name]])
            for name, scores in self.readings.items()
        }
        return TransferSet(
            torch.cat([self.features, other.features]),
            readings,
            torch.cat([self.winners, other.winners]),
        )


@dataclass(frozen=True)
class Student:
    """A decoder with a setting and a reading, and how often it named the winner held back."""

    decoder: Decoder
    setting: tuple[float, ...]
    reading: str
    agreement: float

    def predict(self, transfer: TransferSet, unseen: Tensor) -> Tensor:
        """Learns the transfer set and names labels. Shapes: unseen (rows, f) -> (rows,)."""
        return _fit_predict(self.decoder, self.setting, transfer, unseen)[self.reading]

    def __str__(self) -> str:
        longer = ", trained longer" if self.setting == _LONG else ""
        return f"{type(self.decoder).__name__}{longer} on {self.reading}"


def synthetic_queries(rows: Tensor, seed: int) -> Examples:
    """Makes inputs to ask about: mixes of two rows, and rows moved a little, half of each.

    They stay within the range of every feature. Shapes: rows (n, ...) -> (3 n, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    count, places = len(rows) * _MADE, (-1, *[1] * (rows.dim() - 1))
    first, second = (
        rows[torch.randint(len(rows), (count,), generator=generator)] for _ in range(2)
    )
    share = torch.rand(count, generator=generator).reshape(places).to(rows.dtype)
    share[count // 2 :] = 1
    off = torch.randn(rows.shape[1:].numel() * count, generator=generator).reshape(first.shape)
    units = Scale.of(rows).deviation.reshape(rows.shape[1:]) * _JITTER
    mixed = share * first + (1 - share) * second + (share == 1) * (off * units).to(rows.dtype)
    return Examples(f"{count} inputs made of rows", mixed.clamp(rows.amin(0), rows.amax(0)))


def _readings(game: Game, answers: Answers, winners: Tensor) -> dict[str, Tensor]:
    views = game.views(answers)
    known = {name: views[name] for name in _READ_AS if name in views}
    return {**known, "winner": one_hot(winners, game.classes).float()}


def _compared(
    decoder: Decoder, setting: tuple[float, ...], fit: TransferSet, check: TransferSet
) -> Iterator[Student]:
    for reading, labels in _fit_predict(decoder, setting, fit, check.features).items():
        agreement = float((labels == check.winners).double().mean())
        yield Student(decoder, setting, reading, agreement)


def _fit_predict(
    decoder: Decoder, setting: tuple[float, ...], transfer: TransferSet, unseen: Tensor
) -> dict[str, Tensor]:
    """Learns all readings at once, in units of their own, and names labels by each.

    Shapes: unseen (rows, f) -> each (rows,).
    """
    parts = [reading / reading.std().clamp_min(1e-6) for reading in transfer.readings.values()]
    guess = decoder.predict(transfer.features, torch.cat(parts, 1).float(), unseen, setting)
    scores = guess.chunk(len(parts), 1)
    return {
        name: reading.argmax(1) for name, reading in zip(transfer.readings, scores, strict=True)
    }
