"""A policy written as the TOML file that reads as the same one."""

from shieldnet.core.errors import ConfigError
from shieldnet.gate.policy import VERSION, Policy


def policy_text(policy: Policy) -> str:
    """Writes a policy as TOML.

    Errors: ConfigError for one without a limit, which no file holds.
    """
    import tomlkit

    if not policy.asks:
        raise ConfigError("A policy without a limit judges nothing: leave it out.")
    limits = {name: policy.limits[name] for name in sorted(policy.limits)}
    groups = {name: dict(policy.groups[name]) for name in sorted(policy.groups)}
    shown = {"version": VERSION, "required": list(policy.required), **limits, "groups": groups}
    return tomlkit.dumps({name: value for name, value in shown.items() if value not in ([], {})})
