"""What can go wrong, one class per kind of mistake, each with the command line's exit code."""

from typing import ClassVar


class ShieldnetError(Exception):
    """Says what was expected, what came and what to do; the base of every error here."""

    exit_code: ClassVar[int] = 2


class ConfigError(ShieldnetError, ValueError):
    """A setting, a name or an order of defenses that makes no sense."""


class DataError(ShieldnetError, ValueError):
    """Examples or files that cannot be used as given."""


class AnswerError(ShieldnetError, RuntimeError):
    """An output of the model that cannot be defended, so nothing was released."""


class BypassError(ShieldnetError, AttributeError):
    """A method of the model that would answer without its shield."""


class MissingDependency(ShieldnetError, ImportError):
    """An optional package that this room needs and that is not installed."""


class PreflightFailed(ShieldnetError, ValueError):
    """A model, loss or data with which private training would not be private."""


class TrainingFailed(ShieldnetError, RuntimeError):
    """A training that went where no model is, or a checkpoint that belongs to another."""


class PolicyFailed(ShieldnetError):
    """A measured bound that breaks the policy, or its own proven limit."""

    exit_code = 1


class PolicyInconclusive(ShieldnetError):
    """A measurement too small to say whether the policy is met."""

    exit_code = 3


class VerificationFailed(ShieldnetError):
    """A hardened folder that does not hold what was written, signed, proven and measured."""

    exit_code = 1
