"""A shield's state is its model's: checkpoints go in and out without a prefix."""

from typing import Any

from torch import nn


def keep_model_keys(shield: nn.Module) -> None:
    """Lets ``state_dict`` and ``load_state_dict`` of a shield use the keys of ``shield.model``."""
    shield.register_state_dict_post_hook(_drop_prefix)
    shield.register_load_state_dict_pre_hook(_add_prefix)


def _drop_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Gives ``state_dict`` the model's own keys, in their order."""
    inner = f"{prefix}model."
    own = {key: state.pop(key) for key in list(state) if key.startswith(inner)}
    state.update({prefix + key.removeprefix(inner): value for key, value in own.items()})


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Lets ``load_state_dict`` take the model's own keys."""
    own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    state.update({f"{prefix}model.{key.removeprefix(prefix)}": value for key, value in own.items()})
