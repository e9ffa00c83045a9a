"""What a training claims before it runs, and what its canaries measure afterwards."""

import math
from dataclasses import replace

from torch import nn

from shieldnet.core.errors import ConfigError
from shieldnet.data.hashing import weights_hash
from shieldnet.findings.finding import Finding, Threat
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.privacy.independent_bounds import (
    CONFIDENCE,
    advantage_interval,
    epsilon_of_advantage,
    guessed_by_sign,
    mapped,
    mu_of_advantage,
)
from shieldnet.privacy.one_run_bounds import (
    best_guesses,
    best_guesses_for_mu,
    epsilon_finding,
    guessed,
    mu_interval,
)
from shieldnet.training.checkpoint import State
from shieldnet.training.compatibility import held_apart
from shieldnet.training.losses import Loss
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.premise import Premise, fit
from shieldnet.training.private.sampling import is_proven
from shieldnet.training.records import Records

_SEES_GRADIENTS = Threat(white_box=True, sees="every noisy gradient")


def with_variation(claimed: Guarantee | None, variation: float) -> Guarantee | None:
    """Returns the claim with the total variation between all draws and the ideal distribution.

    Errors: ConfigError if no finite epsilon remains.
    """
    if claimed is None:
        return None
    claimed = replace(claimed, variation=variation)
    if math.isinf(claimed.epsilon):
        raise ConfigError(
            f"delta {claimed.delta:g} cannot be met: the draws differ from the ideal distribution "
            f"by a total variation of up to {claimed.variation:.1g}, and delta must cover that "
            "1 + e^epsilon times. Take more noise, or mode='empirical', which states no guarantee."
        )
    return claimed


def known_of_start(
    model: nn.Module,
    premise: Premise,
    records: Records,
    heldout: object,
    loss: Loss,
    claimed: Guarantee | None,
) -> str:
    """Returns what a test of the start on heldout records found, or "" without heldout."""
    if claimed is None:
        if premise.known is not None or heldout is not None:
            raise ConfigError(
                "start= and heldout= concern the guarantee of DPSGD(epsilon or noise_multiplier, "
                "delta), and this training has none: omit them."
            )
        return ""
    if heldout is None:
        return ""
    rows = held_apart(model, heldout, records, "heldout", loss, private=True)
    better, chance = fit(model, records, rows, loss)
    return premise.check(better, chance, rows=min(len(records), len(rows)))


def guarantee_of(
    private: DPSGD, rate: float, steps: int, records: int, seed: int | None
) -> Guarantee | None:
    """Returns the guarantee of ``steps`` steps, None in empirical mode; raises ConfigError."""
    if not private.is_certified:
        return None
    delta = float(private.delta or 0)
    if delta >= 1 / records:
        raise ConfigError(
            f"Expected delta below 1 / {records} records, got {delta:g}: such a delta would allow "
            "publishing one whole record."
        )
    event = private.event(rate, steps)
    caveats = (
        ()
        if seed is None
        else ("anyone who knows the seed knows the noise: seeded runs are for tests",)
    )
    own = () if is_proven(private.sampler) else (f"{private.sampler!r} draws as its event says",)
    guarantee = Guarantee(
        event.noise, event.rate, event.count, records, delta, caveats, premises=own
    )
    looser = guarantee.cross_check()
    if looser < 0.98 * guarantee.epsilon - 1e-3:  # near 0 the grid of losses is coarser
        raise ConfigError(
            f"Two accountants disagree: {guarantee.epsilon:.4g} by privacy losses, {looser:.4g} by "
            "Renyi divergences, which cannot be less. Please report this; nothing was trained."
        )
    return guarantee


def released_guarantee(
    claimed: Guarantee | None, premise: Premise, released: nn.Module, run: str
) -> Guarantee | None:
    """Returns the guarantee of the released weights, with its premises."""
    if claimed is None:
        return None
    return premise.stated(replace(claimed, weights=weights_hash(released)), run)


def findings_of_run(claimed: Guarantee | None, state: State) -> tuple[Finding, ...]:
    """Audits the run by its canaries, if any; how they are guessed is chosen before scoring."""
    if claimed is None or not len(state.coins):
        return ()
    return *_by_any_canaries(claimed, state), *_by_independent_canaries(claimed, state)


def _by_any_canaries(claimed: Guarantee, state: State) -> tuple[Finding, Finding]:
    """Bounds epsilon and mu, whatever canaries do to each other."""
    count = len(state.coins)
    guesses = best_guesses(claimed.mu, count, claimed.delta)
    few = best_guesses_for_mu(claimed.mu, count)
    right = guessed(state.scores, state.coins, few)
    return (
        epsilon_finding(
            "one_run.epsilon",
            guessed(state.scores, state.coins, guesses),
            guesses,
            count,
            claimed.delta,
            claimed=claimed.epsilon,
            threat=_SEES_GRADIENTS,
            scoring="gradient canaries",
        ),
        Finding.of(
            "one_run.mu",
            mu_interval(right, few, count),
            samples=count,
            baseline=0.0,
            threat=_SEES_GRADIENTS,
            source="Mahloujifar et al. 2024, Algorithm 3; gradient canaries",
            ceiling=claimed.mu,
            note=f"{right} of {few} guesses right; of Gaussian differential privacy: no bound on "
            "epsilon",
        ),
    )


def _by_independent_canaries(claimed: Guarantee, state: State) -> tuple[Finding, Finding]:
    """Bounds mu and epsilon closely, under assumptions that the findings name."""
    count = len(state.coins)
    right = guessed_by_sign(state.scores, state.coins)
    advantage = advantage_interval(right, count)
    level = f"{CONFIDENCE:.1%} interval; {right} of {count} guesses right"
    of_mu = Finding.of(
        "one_run.independent.mu",
        mapped(advantage, mu_of_advantage),
        samples=count,
        baseline=0.0,
        threat=_SEES_GRADIENTS,
        source="Clopper and Pearson 1934, of every canary's guess; gradient canaries",
        ceiling=claimed.mu,
        note=f"{level}; assumes that no canary's sums depend on another's draws or noise: each has "
        "a weight of its own",
    )
    of_epsilon = Finding.of(
        "one_run.gaussian.epsilon",
        mapped(advantage, lambda least: epsilon_of_advantage(claimed, least)),
        samples=count,
        baseline=0.0,
        threat=_SEES_GRADIENTS,
        source="the accountant, at the noise that allows so many hits; gradient canaries",
        ceiling=claimed.epsilon,
        note=f"{level}; assumes independent canaries, Gaussian noise and the claimed sampling",
    )
    return of_mu, of_epsilon
