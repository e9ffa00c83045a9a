"""Ways around a shield, each refused with the way through it."""

from shieldnet.core.errors import BypassError, ConfigError

_INSTEAD = {"generate": ", model.generate(..., logits_processor=[shield.logits_processor()])"}


def bypassed(name: str) -> BypassError:
    """Refuses a method of the model's own."""
    return BypassError(
        f"A Shield has no {name}: the model's own would answer without the defenses. "
        f"Call shield(...) instead{_INSTEAD.get(name, '')}, "
        f"or shield.model.{name} where no untrusted client listens."
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
