"""Inverting answers with the model in hand: forward through the defenses, backward past them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.adversary.decoders import Decoder, KernelRidge, Ridge
from shieldnet.attacks.adversary.label_baseline import label_baseline
from shieldnet.attacks.adversary.scales import Columns, Scale
from shieldnet.attacks.adversary.selection import MIN_ROWS, choose, surely_best
from shieldnet.attacks.answers import Answers, Behind, defended
from shieldnet.attacks.base import Attack, Game, require_real_inputs
from shieldnet.attacks.inversion.decoding import INVERTS
from shieldnet.core.statistics import Interval, saved_share
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.metrics import MORE_ATTACKS, RELEASE_LESS, Limit, Metric
from shieldnet.shield.module import Shield

_MAX_TARGETS = 400
_MAX_PRACTICE_ROWS = 100
_MAX_ROWS = 2000
"""Rows whose principal directions are taken: a decomposition of more takes long."""


@dataclass(frozen=True)
class StraightThrough(Attack):
    """Looks for the input whose answer is the released one, along the gradient of the bare model.

    The adversary holds the model and knows the shield. It starts at what the best ridge decoder
    expects and moves along the principal directions of its own rows. Forward, every guess goes
    through the model and all defenses; backward, the gradient passes the defenses as if they were
    not there (BPDA), which undoes what rounding does to a gradient. What is minimized is
    |reading(guess) - reading(answer)|^2, standardized, per number of the reading, plus
    pull |moved|^2, in deviations of the data. The pull, or not to move at all, is chosen on
    auxiliary rows that the decoder has not seen.

    ``white_box.inversion`` is the leakage over the label alone, as of ``Inversion``.

    pulls: that are tried. steps: of Adam, of ``pace`` deviations each. dimensions: how many
    principal directions, at most.
    Errors: NotApplicable where the model has no gradient, or there is no auxiliary data.
    Source: Athalye et al. 2018 (BPDA); He et al. 2019, white-box model inversion.
    """

    metrics = (
        Metric(
            "white_box.inversion",
            "leakage, white box",
            "more",
            Limit(
                "max_white_box_leakage",
                0.50,
                "leakage if the attacker holds the weights too",
                helps=f"{RELEASE_LESS} Keep the weights private.",
                needs=MORE_ATTACKS,
            ),
            standards=INVERTS,
        ),
    )
    searches = True
    pulls: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    steps: int = 60
    pace: float = 0.05
    dimensions: int = 64
    decoders: tuple[Decoder, ...] = (Ridge(), KernelRidge())

    def __call__(self, game: Game) -> Outcome:
        auxiliary, targets = game.owned(), game.nonmembers
        game.require_rows(MIN_ROWS, auxiliary, targets)
        require_gradient(game, auxiliary.inputs)
        targets = Examples(targets.name, targets.inputs[:_MAX_TARGETS])
        space = Space.of(auxiliary.inputs, self.dimensions)
        scale = space.scale
        known, sought = scale.apply(auxiliary.inputs), scale.apply(targets.inputs)
        if not scale.weights.any():
            raise NotApplicable("no column of the auxiliary rows varies")
        learned = readings(game, game.ask(auxiliary))
        labels = game.model_labels(auxiliary)
        pull, by_label_alone, sure = self._best_pull(game, space, learned, known, labels)
        chosen = choose(self.decoders, learned, known, seed=game.seed)
        unseen = readings(game, game.ask(game.nonmembers).first(len(targets)))
        guess = space.inside(chosen.predict(learned, known, unseen))
        if pull is not None:
            match = _Match(game, chosen.view, learned[chosen.view], unseen[chosen.view])
            guess = self._refined(match, space, guess, pull)
        means = label_baseline(labels, known, game.classes)
        by_label = means[game.model_labels(game.nonmembers)[: len(targets)]]
        guess = by_label.where(by_label_alone, guess)
        errors, baseline = (
            ((guessed - sought).square() * scale.weights).sum(1) for guessed in (guess, by_label)
        )
        refinement = "not moved" if pull is None else f"moved with pull {pull:g}"
        share = saved_share(errors, baseline, seed=game.seed)
        if not sure:  # the label is used; what was tried bounds what is found
            share = Interval(0.0, 0.0, max(0.0, share.high))
        return Outcome(
            findings=(
                Finding.of(
                    "white_box.inversion",
                    share,
                    samples=len(targets),
                    baseline=0.0,
                    threat=Threat(auxiliary=len(auxiliary), white_box=True),
                    source=f"{chosen}, {refinement}" if sure else "the label alone",
                    note="" if sure else "no guess was significantly better than the label's",
                ),
            )
        )

    def _best_pull(
        self,
        game: Game,
        space: "Space",
        learned: dict[str, Tensor],
        known: Tensor,
        labels: Tensor,
    ) -> tuple[float | None, Tensor, bool]:
        """Tries every pull on rows that the decoder has not seen; None is not to move.

        Says too which features are best left to the label alone, and whether the others are surely
        guessed better than by it. Shapes: -> (features,) bool.
        """
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(game.seed))
        count = min(_MAX_PRACTICE_ROWS, len(known) // 4)
        practice, rest = order[:count], order[count:]
        fit = {name: view[rest] for name, view in learned.items()}
        unseen = {name: view[practice] for name, view in learned.items()}
        chosen = choose(self.decoders, fit, known[rest], seed=game.seed)
        guess = space.inside(chosen.predict(fit, known[rest], unseen))
        match = _Match(game, chosen.view, fit[chosen.view], unseen[chosen.view])
        tried: list[tuple[float | None, Tensor]] = [(None, guess)]
        tried += [(pull, self._refined(match, space, guess, pull)) for pull in self.pulls]
        pull, best = min(tried, key=lambda trial: _error(trial[1], known[practice]))
        by_label = label_baseline(labels[rest], known[rest], game.classes)[labels[practice]]
        errors = (torch.stack([best, by_label]) - known[practice]).square()
        places, sure = surely_best(errors * space.scale.weights)
        return pull, places == 1, bool(sure.any())

    def _refined(self, match: "_Match", space: "Space", guess: Tensor, pull: float) -> Tensor:
        """Moves guesses towards inputs with the right answer. Shapes: (n, d) -> (n, d), scaled."""
        offsets = torch.zeros(len(guess), len(space.axes))
        optimizer = torch.optim.Adam([offsets], lr=self.pace)
        for _ in range(self.steps):
            with torch.enable_grad():
                offset = offsets.clone().requires_grad_()
                missed = match.missed(space.inputs(guess + offset @ space.axes))
                loss = missed.sum() + pull * offset.square().sum()
                (offsets.grad,) = torch.autograd.grad(loss, offset)
            optimizer.step()
        return space.inside(guess + offsets @ space.axes)


@dataclass(frozen=True)
class Space:
    """Spans what the adversary's own rows look like: their principal directions and their range.

    scale: units of the features. axes: one deviation along each direction. low, high: least and
    greatest value of each feature. dtype: of the inputs.
    Shapes: axes (q, d), low and high (d,), all scaled.
    """

    scale: Scale
    axes: Tensor
    low: Tensor
    high: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, inputs: Tensor, dimensions: int) -> "Space":
        """Takes the ``dimensions`` widest directions of the inputs. Shapes: inputs (rows, ...)."""
        scale = Columns.of(inputs) if inputs.dim() == 2 else Scale.of(inputs)
        rows = scale.apply(inputs)
        some = rows[:_MAX_ROWS]
        _, lengths, directions = torch.linalg.svd(some, full_matrices=False)
        count = min(dimensions, max(1, int((lengths > 1e-4 * lengths[0]).sum())))
        deviations = lengths[:count] / len(some) ** 0.5
        axes = directions[:count] * deviations.unsqueeze(1)
        return cls(scale, axes, rows.amin(0), rows.amax(0), inputs.dtype)

    def inside(self, features: Tensor) -> Tensor:
        """Keeps features within the range of the adversary's rows. Shapes: (n, d) -> (n, d)."""
        return features.clamp(self.low, self.high)

    def inputs(self, features: Tensor) -> Tensor:
        """Returns scaled features as inputs of the model. Shapes: (n, d) -> (n, ...)."""
        flat = self.scale.undo(self.inside(features))
        return flat.reshape(len(flat), *self.scale.shape).to(self.dtype)


def require_gradient(game: Game, inputs: Tensor) -> None:
    """Raises NotApplicable where no gradient of the model reaches its input."""
    require_real_inputs(replace(game.nonmembers, inputs=inputs, labels=None))
    with torch.enable_grad():
        if not scores_with_graph(game.shield, inputs[:1].clone().requires_grad_()).requires_grad:
            raise NotApplicable("the model's output has no gradient with respect to its input")


def scores_with_graph(shield: Shield, inputs: Tensor) -> Tensor:
    """Returns the bare model's scores, log p where it gives probabilities; on the CPU.

    Shapes: inputs (rows, ...) -> (rows, classes).
    """
    parameter = next(shield.model.parameters(), inputs)
    scores: Tensor = Behind(shield)(inputs.to(parameter.device)).cpu()
    is_probability = shield.chain.layout.row_kind == "probabilities"
    return scores.clamp_min(1e-30).log() if is_probability else scores


@dataclass(frozen=True)
class _Match:
    """How far the answers about guesses are from those that are wanted, in one reading.

    learned: of the adversary's own rows, whose spread is the unit. wanted: of the targets.
    Shapes: learned (n, f), wanted (m, f).
    """

    game: Game
    view: str
    learned: Tensor
    wanted: Tensor

    def missed(self, inputs: Tensor) -> Tensor:
        """Returns the mean square per target, with the gradient of the bare model.

        Shapes: inputs (m, ...) -> (m,).
        """
        shield = self.game.shield
        scores = scores_with_graph(shield, inputs)
        true = scores.detach()
        if shield.chain.layout.row_kind == "probabilities":
            true = true.exp()
        answers = readings(self.game, defended(shield, true, inputs.detach()))[self.view]
        bare = scores if self.view in _OWN_NUMBERS else scores.log_softmax(-1)
        unit = self.learned.std(0)
        unit = unit.where(unit > 1e-6, 1.0)
        forward = answers + (bare - bare.detach())  # exactly the answers: Adam follows any residue
        return ((forward - self.wanted) / unit).clamp(-10, 10).square().mean(1)


_OWN_NUMBERS = ("logits", "numbers")
"""Readings that are the model's own numbers, not log p."""


def readings(game: Game, answers: Answers) -> dict[str, Tensor]:
    """Keeps the readings that are near the model's own numbers or near log p."""
    return {
        name: view
        for name, view in game.views(answers).items()
        if name in _OWN_NUMBERS or name.startswith("log p")
    }


def _error(guess: Tensor, truth: Tensor) -> float:
    return float((guess - truth).square().mean())
