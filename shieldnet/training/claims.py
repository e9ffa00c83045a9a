"""What a training claims before it runs, and what its canaries measure afterwards."""

import math
from dataclasses import replace

from torch import nn

from shieldnet.core.errors import ConfigError
from shieldnet.data.hashing import weights_hash
from shieldnet.findings.finding import Finding, Threat
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.privacy.one_run_bounds import best_guesses, epsilon_finding, guessed, mu_interval
from shieldnet.training.checkpoint import State
from shieldnet.training.compatibility import held_apart
from shieldnet.training.losses import Loss
from shieldnet.training.private.dpsgd import DPSGD
from shieldnet.training.private.premise import Premise, fit
from shieldnet.training.private.sampling import is_proven
from shieldnet.training.records import Records


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
    """Audits the run by its canaries, if any; the number of guesses is chosen before scoring."""
    count = len(state.coins)
    if claimed is None or not count:
        return ()
    guesses = best_guesses(claimed.mu, count, claimed.delta)
    right = guessed(state.scores, state.coins, guesses)
    threat = Threat(white_box=True, sees="every noisy gradient")
    return (
        epsilon_finding(
            "one_run.epsilon",
            right,
            guesses,
            count,
            claimed.delta,
            claimed=claimed.epsilon,
            threat=threat,
            scoring="gradient canaries",
        ),
        Finding.of(
            "one_run.mu",
            mu_interval(right, guesses, count),
            samples=count,
            baseline=0.0,
            threat=threat,
            source="Mahloujifar et al. 2024, Algorithm 3; gradient canaries",
            ceiling=claimed.mu,
            note="of Gaussian differential privacy; no bound on epsilon",
        ),
    )
