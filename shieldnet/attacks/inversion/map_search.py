"""Searching for the image whose released map is the one that was seen, with the model in hand."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shieldnet.attacks.adversary.features import Scale
from shieldnet.attacks.adversary.map_decoders import Patches
from shieldnet.attacks.base import Attack, Game, require_real_inputs
from shieldnet.attacks.inversion.maps import MapInversion, Trial
from shieldnet.attacks.inversion.white_box import StraightThrough
from shieldnet.findings.finding import Finding, NotApplicable, Outcome, Threat
from shieldnet.findings.reading import BY_LABEL

_MAX_PRACTICE, _MAX_TARGETS = 40, 100
_DECODER = MapInversion(local=(Patches(),))


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
    decoder: MapInversion = _DECODER

    def __call__(self, game: Game) -> Outcome:
        require_real_inputs(game.nonmembers)
        whole = self.decoder.tried(game)
        trial = whole.at(
            min(_MAX_PRACTICE, len(whole.learner.check)), min(_MAX_TARGETS, len(whole.targets))
        )
        if not isinstance(trial.secret, Scale):
            raise NotApplicable("it moves the numbers of one input")
        match = _Match(game, trial, max(trial.answers.least / 2, 1e-6))
        match.require_gradient()
        name, start, _ = trial.best(trial.guesses)
        practice = len(trial.learner.check)
        tried = {name: start, trial.source: trial.by_label}
        for pull in self.pulls:
            moved = self._moved(match, start[:practice], slice(0, practice), pull)
            tried[f"moved with pull {pull:g}"] = torch.cat([moved, start[practice:]])
        best, guess, is_sure = trial.best(tried)
        if best.startswith("moved"):
            pull = float(best.split()[-1])
            rest = slice(practice, len(start))
            guess = torch.cat([guess[:practice], self._moved(match, start[rest], rest, pull)])
        errors = trial.scored(guess, is_sure)
        finding = Finding.of(
            "white_box.inversion.map",
            errors.share(game.seed),
            samples=len(errors.guess),
            baseline=0.0,
            threat=Threat(auxiliary=whole.learner.rows, white_box=True),
            source=f"{name}, {best}; baseline: {trial.source}",
            note="" if is_sure else BY_LABEL,
        )
        return Outcome(findings=(finding,))

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
