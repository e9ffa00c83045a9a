"""What does a typical member of a class look like? Model inversion of classes, not of rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shieldnet.attacks.adversary.decoders import KernelRidge, Ridge
from shieldnet.attacks.adversary.selection import MIN_ROWS, Chosen, choose
from shieldnet.attacks.answers import in_batches, one_row_each
from shieldnet.attacks.base import Attack, Game
from shieldnet.attacks.inversion.white_box import Space, require_gradient, scores_with_graph
from shieldnet.core.checks import positive, whole
from shieldnet.core.statistics import CONFIDENCE, proportion
from shieldnet.findings.finding import CLASS_IMAGE, Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import MORE_ATTACKS, Limit, Metric
from shieldnet.findings.reading import FEW_CLASSES
from shieldnet.shield.module import Shield

_MAX_CLASSES = 20
_MAX_IMAGES = 10
_MAX_POINTS = 1024  # asked about at once
_JITTER = 0.3  # of the starts, in deviations of the data
_WIDTH = 1.0  # of the population around a point, in deviations of the data
_FLOOR = 1e-8  # a released zero says no more than this
_STALLED = "it never left its start"
_MASKED = "a masked gradient, not privacy"
_FEW = 10  # classes, of which even 10 of 10 leave an interval of a third

Direction = Callable[[Tensor], Tensor]
"""Says where the released probability of each wanted class rises. Shapes: (n, q) -> (n, q)."""


@dataclass(frozen=True)
class ClassInversion(Attack):
    """Climbs to where the shield names a class most surely, and looks at what is there.

    Three adversaries search the principal directions of their own rows, of which they need no
    label, from near the mean row, and keep the best point that the shield's answers show them.
    ``gradient`` holds the model and differentiates the whole shield (MIFace); rounding makes that
    gradient 0. ``straight_through`` takes the gradient of the model behind the shield (BPDA).
    ``queries`` only asks: an evolution strategy compares the answers around a point.

    ``class_inversion.gradient`` and so on are the shares of reconstructions, of classes times
    restarts, in which a judge that learned the true labels recognizes the class; the baseline is
    its share at the starts. ``class_inversion`` is the worst; all intervals are widened to hold at
    once (Bonferroni). Restarts of one class resemble each other: the samples are the classes.

    What is found is a class, not a record. A client who gets labels learns what they mean, if
    only from the mean of its own rows that get the label: no shaping of answers stops that.

    steps: of Adam, of ``pace`` deviations each. population: answers about points around each
    guess, at each step. dimensions: how many principal directions, at most.
    Errors: NotApplicable without labels of the auxiliary rows, or for inputs that are no floats.
    Source: Fredrikson et al. 2015 (MIFace); Athalye et al. 2018; Salimans et al. 2017.
    """

    metrics = (
        Metric(
            "class_inversion",
            "class inversion",
            "more",
            Limit(
                "max_class_inversion",
                0.50,
                "classes recognized in what is drawn from answers",
                helps="No shaping of answers prevents it: labels alone show what a class looks "
                "like. Limit who may query the model, and how often.",
                needs=MORE_ATTACKS,
            ),
            standards=("AISVS 11.1.3", "AML.T0024.001"),
            rows="classes",
        ),
        Metric(
            "class_inversion.*",
            "class inversion by one search",
            "more",
            ungated="the worst search is judged, as class_inversion",
        ),
    )
    steps: int = 60
    restarts: int = 3
    population: int = 40
    pace: float = 0.1
    dimensions: int = 24

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "dimensions"):
            whole(name, getattr(self, name), low=1)
        whole("population", self.population, low=2)
        positive("pace", self.pace)

    def __call__(self, game: Game) -> Outcome:
        game.require_classes()
        auxiliary = game.owned()
        labels = game.labels(auxiliary)
        game.require_rows(MIN_ROWS, auxiliary)
        if not auxiliary.inputs.is_floating_point():
            raise NotApplicable(f"inputs of {auxiliary.inputs.dtype} cannot be moved a little")
        search, skipped = self._search(game, labels.unique())
        climbers, untested = self._climbers(game, search)
        judge = _Judge.of(search.space.scale.apply(auxiliary.inputs), labels, game)
        ends = {climber.name: self._climbed(search, climber.direction) for climber in climbers}
        wanted, starts = search.wanted, search.starts
        count = len(wanted) // self.restarts
        baseline = judge.recognized(search.features(starts), wanted) / self.restarts / count

        def finding(climber: _Climber) -> Finding:
            right = judge.recognized(search.features(ends[climber.name]), wanted) / self.restarts
            return Finding.of(
                f"class_inversion.{climber.name}",
                proportion(right, count, 1 - (1 - CONFIDENCE) / len(climbers)),
                samples=count,
                baseline=baseline,
                threat=climber.threat,
                source=f"{climber.name} search, {self.restarts} restarts a class; "
                f"judged by {judge}",
                note="; ".join(
                    part
                    for part, is_so in (
                        (_STALLED, torch.equal(ends[climber.name], starts)),
                        (f"{count} classes: {FEW_CLASSES}", count < _FEW),
                    )
                    if is_so
                ),
            )

        findings = {climber.name: finding(climber) for climber in climbers}
        worst = max(findings, key=lambda name: findings[name].value)
        if findings[worst].low > baseline:
            findings = {name: _noted(shown) for name, shown in findings.items()}
        return Outcome(
            findings=(replace(findings[worst], name="class_inversion"), *findings.values()),
            features=dict(search.images(ends[worst])),
            untested=(*skipped, *untested),
        )

    def _search(self, game: Game, present: Tensor) -> tuple["_Search", tuple[str, ...]]:
        """Places the starts, of all classes or of as many as there is time for."""
        generator = torch.Generator().manual_seed(game.seed)
        order = torch.randperm(len(present), generator=generator)
        some = present[order[:_MAX_CLASSES]].sort().values
        wanted = some.repeat(self.restarts)
        space = Space.of(game.owned().inputs, self.dimensions)
        starts = _JITTER * torch.randn(len(wanted), len(space.axes), generator=generator)
        pairs = self.population // 2
        search = _Search(game.shield, space, wanted, starts, pairs, generator)
        if len(some) == len(present):
            return search, ()
        return search, (f"class_inversion: {len(some)} of {len(present)} classes were searched",)

    def _climbers(self, game: Game, search: "_Search") -> tuple[list["_Climber"], tuple[str, ...]]:
        """Lists the searches that fit the model, and why others do not."""
        own, scorings = len(game.owned()), self.steps + 1  # the start and every step are scored
        queries = _Climber(
            "queries", search.asked, Threat(scorings + 2 * search.pairs * self.steps, own)
        )
        try:
            require_gradient(game, game.owned().inputs)
        except NotApplicable as reason:
            return [queries], (f"class_inversion.gradient and .straight_through: {reason}",)
        through = Threat(scorings + self.steps, own, white_box=True)
        past = Threat(scorings, own, white_box=True)
        return [
            _Climber("gradient", search.through, through),
            _Climber("straight_through", search.past, past),
            queries,
        ], ()

    def _climbed(self, search: "_Search", direction: Direction) -> Tensor:
        """Climbs from all starts at once and returns the best points on the way."""
        point, best, highest = search.starts.clone(), search.starts, search.scores(search.starts)
        optimizer = torch.optim.Adam([point], lr=self.pace)
        limit = point.shape[1] ** 0.5  # rows of the data lie about as far out, and hardly further
        for _ in range(self.steps):
            point.grad = -direction(point)
            optimizer.step()
            point *= (limit / point.norm(dim=1, keepdim=True).clamp_min(1e-9)).clamp_max(1)
            scores = search.scores(point)
            best = torch.where((scores >= highest).unsqueeze(1), point, best)
            highest = torch.maximum(scores, highest)
        return best


@dataclass(frozen=True)
class _Climber:
    """One adversary: how it climbs, and what it holds."""

    name: str
    direction: Direction
    threat: Threat


@dataclass(frozen=True)
class _Search:
    """Knows which class is wanted at each of n points, and three ways to climb towards it.

    Points are coefficients of the space's axes. pairs: of opposite steps around each point.
    Shapes: wanted (n,), starts (n, q).
    """

    shield: Shield
    space: Space
    wanted: Tensor
    starts: Tensor
    pairs: int
    generator: torch.Generator

    def features(self, points: Tensor) -> Tensor:
        """Returns scaled features. Shapes: (n, q) -> (n, d)."""
        return self.space.inside(points @ self.space.axes)

    def scores(self, points: Tensor) -> Tensor:
        """Asks for log p of the wanted classes. Shapes: (n, q) -> (n,), (n, m, q) -> (n, m)."""
        flat = points.reshape(-1, points.shape[-1])
        inputs = (self.space.inputs(rows @ self.space.axes) for rows in flat.split(_MAX_POINTS))
        answers = torch.cat([in_batches(self.shield, batch) for batch in inputs])
        stated = one_row_each(self.shield.distribution(answers)).float().clamp_min(_FLOOR).log()
        wanted = self.wanted.repeat_interleave(len(flat) // len(self.wanted))
        return stated[torch.arange(len(flat)), wanted].reshape(points.shape[:-1])

    def through(self, points: Tensor) -> Tensor:
        """Differentiates the released log p through the whole shield."""
        return self._gradient(points, self._released)

    def past(self, points: Tensor) -> Tensor:
        """Differentiates log p of the model behind the shield."""
        return self._gradient(
            points, lambda inputs: scores_with_graph(self.shield, inputs).log_softmax(-1)
        )

    def asked(self, points: Tensor) -> Tensor:
        """Leans towards those of many steps that score higher than their opposites."""
        shape = len(points), self.pairs, points.shape[1]
        steps = _WIDTH * torch.randn(shape, generator=self.generator)
        around = points.unsqueeze(1)
        scores = self.scores(torch.cat([around + steps, around - steps], 1))
        # In deviations, so that neither sure nor unsure answers rule the pace.
        spread = scores.std(1, keepdim=True)
        scores = scores / spread.where(spread > 0, 1.0)
        gain = scores[:, : self.pairs] - scores[:, self.pairs :]
        return (gain.unsqueeze(-1) * steps).mean(1)

    def images(self, points: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields the first reconstruction of at most ten classes, of the shape of an input."""
        count = min(len(self.wanted.unique()), _MAX_IMAGES)
        images = self.space.inputs(points[:count] @ self.space.axes).float()
        for label, image in zip(self.wanted[:count].tolist(), images, strict=True):
            yield f"{CLASS_IMAGE}{label}", image

    def _released(self, inputs: Tensor) -> Tensor:
        shield = self.shield
        parameter = next(shield.model.parameters(), inputs)
        placed = inputs.to(parameter.device)
        scores = shield.answer_in(shield.model(placed.clone()))
        stated = one_row_each(shield.distribution(shield.chain(scores, (placed,))))
        return stated.cpu().clamp_min(1e-30).log()

    def _gradient(self, points: Tensor, log_p: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            start = points.detach().clone().requires_grad_()
            stated = log_p(self.space.inputs(start @ self.space.axes))
            aim = stated.gather(1, self.wanted.unsqueeze(1)).sum()
            if not aim.requires_grad:  # whole ticks have no graph at all
                return torch.zeros_like(points)
            (gradient,) = torch.autograd.grad(aim, start)
        return gradient.nan_to_num()


@dataclass(frozen=True)
class _Judge:
    """Names the classes of inputs, as it learned them from true labels; no adversary has it.

    right: how often it is right about rows that it did not learn from.
    Shapes: known (n, d) scaled, hot (n, classes).
    """

    chosen: Chosen
    known: Tensor
    hot: Tensor
    right: float

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, game: Game) -> "_Judge":
        """Learns four fifths of the rows and is tested on the rest. Shapes: (n, d), (n,)."""
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(game.seed))
        test, fit = order[: len(order) // 5], order[len(order) // 5 :]
        hot = nn.functional.one_hot(labels, game.classes).float()
        known, learned = features[fit], hot[fit]
        chosen = choose((Ridge(), KernelRidge()), {"the input": known}, learned, seed=game.seed)
        judge = cls(chosen, known, learned, 0.0)
        return replace(judge, right=judge.recognized(features[test], labels[test]) / len(test))

    def recognized(self, features: Tensor, wanted: Tensor) -> int:
        """Counts the inputs that are of the wanted class. Shapes: (m, d) scaled, (m,)."""
        learned, unseen = {"the input": self.known}, {"the input": features}
        named = self.chosen.predict(learned, self.hot, unseen).argmax(-1)
        return int((named == wanted).sum())

    def __str__(self) -> str:
        return f"{type(self.chosen.decoder).__name__}, right about {self.right:.2f} of fresh rows"


def _noted(finding: Finding) -> Finding:
    """Says of a search that stalled where others arrived that its gradient was masked."""
    if not finding.note.startswith(_STALLED):
        return finding
    note = finding.note.replace(_STALLED, f"{_STALLED}, others arrived: {_MASKED}")
    return replace(finding, note=note)
