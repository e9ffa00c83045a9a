"""Searching for the image whose released map is the one that was seen, with the model in hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.attacks.adversary.scales import Scale
from shieldnet.attacks.base import Attack, Game, require_real_inputs
from shieldnet.attacks.inversion.maps import MapInversion, Trial
from shieldnet.attacks.inversion.white_box import StraightThrough
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.reading import BY_WINNERS

MAX_PRACTICE, MAX_TARGETS = 40, 100
_SHARES = (0.25, 0.5, 1.0)
DECODER = MapInversion(local=(Patches(),))
"""Where a search begins: a quick decoder of maps."""


@dataclass(frozen=True)
class MapSearch(Attack):
    """Moves what the best decoder expects along the gradient, until its map is the released one.

    Forward, every guess goes through the model and all defenses; backward, the gradient passes the
    defenses as if they were not there (BPDA). What is minimized is |log p(guess) - log p(answer)|^2
    per number of the answer, plus pull |moved|^2 per feature, in deviations of the data. The pull,
    or not to move at all, is chosen on auxiliary rows that the decoder has not seen.

    ``white_box.inversion.map`` is the leakage beyond the released labels, as of ``MapInversion``.
    pulls: that are tried. steps: of Adam, of ``pace`` deviations each.
    Errors: NotApplicable where the model has no gradient, or inputs are no real numbers.
    Source: Athalye et al. 2018 (BPDA); He et al. 2019, white-box model inversion.
    """

    searches = True
    at_positions = True
    metrics = (
        replace(
            StraightThrough.metrics[0],
            name="white_box.inversion.map",
            title="leakage of a map, white box",
        ),
    )
    pulls: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    steps: int = 40
    pace: float = 0.05
    decoder: MapInversion = DECODER

    def __call__(self, game: Game) -> Outcome:
        require_real_inputs(game.nonmembers)
        trial = trial_of(game, self.decoder)
        match = _Match(game, trial, max(trial.answers.least / 2, 1e-6))
        match.require_gradient()

        def moved(start: Tensor, rows: slice, pull: float) -> Tensor:
            return self._moved(match, start, rows, pull)

        threat = Threat(auxiliary=trial.learner.rows, white_box=True)
        return searched(game, trial, moved, self.pulls, "white_box.inversion.map", threat)

    def _moved(self, match: "_Match", start: Tensor, rows: slice, pull: float) -> Tensor:
        """Moves guesses towards inputs with the right answer. Shapes: (n, d) -> (n, d), scaled."""
        offset = torch.zeros_like(start)
        optimizer = torch.optim.Adam([offset], lr=self.pace)
        for _ in range(self.steps):
            with torch.enable_grad():
                step = offset.clone().requires_grad_()
                missed = match.missed(start + step, rows)
                loss = (missed + pull * step.square().mean(1)).sum()
                (offset.grad,) = torch.autograd.grad(loss, step)
            optimizer.step()
        return match.inside(start + offset)


def trial_of(game: Game, decoder: MapInversion) -> Trial:
    """Asks about all rows, and keeps as many targets as a search has time for.

    Errors: NotApplicable where what is searched is not one input's numbers.
    """
    whole = decoder.tried(game)
    if not isinstance(whole.secret, Scale):
        raise NotApplicable("it moves the numbers of one input")
    return whole.at(
        min(MAX_PRACTICE, len(whole.learner.check)), min(MAX_TARGETS, len(whole.targets))
    )


def searched(
    game: Game,
    trial: Trial,
    moved: Callable[[Tensor, slice, float], Tensor],
    pulls: Sequence[float],
    name: str,
    threat: Threat,
) -> Outcome:
    """Searches with every pull on the rows held back, and with the best one for the targets.

    What is found is mixed with where it began, as far as that helps on the rows held back.
    moved: moves the guesses of some rows, (n, features) -> the same. name: of the finding.
    """
    source, start, _ = trial.best(trial.guesses)
    start = trial.by_winners if start is trial.by_label else start  # what the adversary has
    practice = len(trial.learner.check)
    tried = {source: start, trial.source: trial.by_label}
    ways: dict[str, tuple[float, float]] = {}
    for pull in pulls:
        way = moved(start[:practice], slice(0, practice), pull) - start[:practice]
        for share in _SHARES:
            said = f"moved {share:.0%} of the way that pull {pull:g} finds"
            ways[said] = pull, share
            tried[said] = torch.cat([start[:practice] + share * way, start[practice:]])
    best, guess, is_sure = trial.best(tried)
    if best in ways:
        pull, share = ways[best]
        rest = slice(practice, len(start))
        found = start[rest] + share * (moved(start[rest], rest, pull) - start[rest])
        guess = torch.cat([guess[:practice], found])
    errors = trial.scored(guess, is_sure=is_sure)
    finding = Finding.of(
        name,
        errors.share(game.seed),
        samples=len(errors.guess),
        baseline=0.0,
        threat=threat,
        source=f"{source}, {best}; baseline: {trial.source}",
        note="" if is_sure else BY_WINNERS,
    )
    return Outcome(findings=(finding,))


@dataclass(frozen=True)
class _Match:
    """How far the answers about guesses are from those that were released.

    floor: smaller numbers are read as this one.
    """

    game: Game
    trial: Trial
    floor: float

    def inside(self, features: Tensor) -> Tensor:
        """Keeps features within what the adversary's rows hold."""
        known = self.trial.learner.known
        return features.clamp(known.amin(), known.amax())

    def require_gradient(self) -> None:
        """Raises NotApplicable where no gradient of the model reaches its input."""
        with torch.enable_grad():
            guess = self.trial.learner.known[:1].clone().requires_grad_()
            if not self.game.shield.answer_in(self._output(guess)).requires_grad:
                raise NotApplicable("the model's output has no gradient with respect to its input")

    def missed(self, guess: Tensor, rows: slice) -> Tensor:
        """Returns the mean square of each row. Shapes: guess (n, features), scaled -> (n,)."""
        shield, wanted = self.game.shield, self.trial.answers.p[rows]
        output = self._output(guess)
        own = shield.chain.layout.opened(shield.answer_in(output)).cpu()
        is_probability = shield.chain.layout.row_kind == "probabilities"
        log_p = own.clamp_min(1e-30).log() if is_probability else own.log_softmax(-1)
        with torch.no_grad():
            answers = shield.answer_in(shield.defend(output, (self._inputs(guess),)))
            p = shield.chain.distribution(answers, wanted.shape[-1]).cpu()
        forward = p.clamp_min(self.floor).log() + (log_p - log_p.detach())
        wanted = wanted.clamp_min(self.floor).log()
        missed: Tensor = (forward - wanted).clamp(-10, 10).square().flatten(1).mean(1)
        return missed

    def _output(self, guess: Tensor) -> Any:
        model = self.game.shield.model
        parameter = next(model.parameters(), guess)
        return model(self._inputs(guess).to(parameter.device, copy=True))

    def _inputs(self, guess: Tensor) -> Tensor:
        inputs = self.game.nonmembers.inputs
        scaled = self.trial.secret.undo(self.inside(guess))
        return scaled.reshape(len(scaled), *inputs.shape[1:]).to(inputs.dtype)
