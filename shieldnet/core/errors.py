"""Exceptions, one class per kind of mistake, each with the exit code of the command line."""

from typing import ClassVar


class ShieldnetError(Exception):
    """Base class of all errors; messages say what was expected, what came and how to fix it."""

    exit_code: ClassVar[int] = 2


class ConfigError(ShieldnetError, ValueError):
    """Raised for an invalid setting, name or order of defenses."""


class DataError(ShieldnetError, ValueError):
    """Raised for examples or files that cannot be used as given."""


class AnswerError(ShieldnetError, RuntimeError):
    """Raised for a model output that cannot be defended; nothing was released."""


class BypassError(ShieldnetError, AttributeError):
    """Raised for a method of the model that would answer without the shield."""


class MissingDependency(ShieldnetError, ImportError):
    """Raised if a required optional package is not installed."""


class PreflightFailed(ShieldnetError, ValueError):
    """Raised if the model, loss or data would break the guarantee of private training."""


class TrainingFailed(ShieldnetError, RuntimeError):
    """Raised if training diverged, or a checkpoint cannot be continued."""


class PolicyFailed(ShieldnetError):
    """Raised if a measured bound breaks the policy, or its own proven bound."""

    exit_code = 1


class PolicyInconclusive(ShieldnetError):
    """Raised if a measurement is too imprecise to tell whether the policy is met."""

    exit_code = 3


class VerificationFailed(ShieldnetError):
    """A hardened folder that does not hold what was written, signed, proven and measured."""

    exit_code = 1


class BudgetExceeded(ShieldnetError):
    """Raised if a client's answer would cost more than is left; nothing was charged or released.

    left: what is left, in words. renews_at: when the budget renews (seconds since the epoch, UTC);
    None if it never does.
    """

    exit_code = 1

    def __init__(self, message: str, left: str = "", renews_at: int | None = None) -> None:
        super().__init__(message)
        self.left, self.renews_at = left, renews_at


class LedgerUnavailable(ShieldnetError, RuntimeError):
    """Raised if a charge could not be recorded: there is no answer without it."""
