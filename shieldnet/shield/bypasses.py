"""Ways around a shield, each refused with the way through it."""

from typing import Any

from torch import Tensor

from shieldnet.core.errors import AnswerError, BypassError, ConfigError

_INSTEAD = {"generate": ", model.generate(..., logits_processor=[shield.logits_processor()])"}


def bypassed(name: str) -> BypassError:
    """Refuses a method of the model's own."""
    return BypassError(
        f"shield.{name} is blocked, as it would bypass the defenses. "
        f"Call shield(...) instead{_INSTEAD.get(name, '')}, "
        f"or shield.model.{name} where no untrusted client listens."
    )


def no_fact(name: str, value: Any) -> BypassError:
    """Refuses an attribute of the model that is more than plain data."""
    kind = "Tensor" if isinstance(value, Tensor) else type(value).__name__
    return BypassError(
        f"shield.{name} is blocked: of the model's attributes, a Shield passes on stored numbers "
        f"and words, device, dtype and config, and this is {kind}, computed or more than plain "
        f"data. Read shield.model.{name} where no untrusted client listens."
    )


def changed_since(name: str) -> BypassError:
    """Refuses an attribute that is not what it was: it may be an answer."""
    return BypassError(
        f"shield.{name} is blocked: it has changed since the Shield was made, and what changes "
        "may hold an answer. Where you changed it yourself, make the Shield anew: "
        f"sn.Shield(shield.model, shield.settings). Or read shield.model.{name} where no "
        "untrusted client listens."
    )


def nested() -> ConfigError:
    """Refuses a shield around a shield."""
    return ConfigError(
        "The model is a Shield already, or holds one: its defenses would act before these, "
        "and no privacy cost would count them. Put all defenses into one Shield around the "
        "model itself, which is shield.model."
    )


def scripted() -> ConfigError:
    """Refuses TorchScript."""
    return ConfigError(
        "torch.jit.script cannot compile a Shield: what it draws and refuses is Python. Use "
        "torch.compile(shield) or torch.export.export(shield, ...); or script the model alone "
        "and put the shield around it."
    )


def training_asked() -> AnswerError:
    """Refuses a call in training mode."""
    return AnswerError(
        "training=True would make answers random or let rows of a batch change each other, and "
        "the model itself. Leave it out."
    )
