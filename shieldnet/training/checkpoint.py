"""Where a training stands, in one file that is never half written and never unpickled."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shieldnet.errors import TrainingFailed

_VERSION = 1


@dataclass
class State:
    """Holds all that the next step depends on, and all that a guarantee counts.

    step: steps that were taken; a guarantee counts these. weights: of the trained part. mean: their
    running mean. coins, scores: which canaries are in, and how surely each looks it.
    """

    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    mean: dict[str, Tensor] = field(default_factory=dict)
    coins: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    scores: Tensor = field(default_factory=lambda: torch.empty(0))


def save(folder: Path, key: str, state: State) -> None:
    """Writes the state beside the last one and then puts it in its place, at once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "finetune.pt"
    beside = folder / f"finetune.pt.{os.getpid()}"
    with beside.open("wb") as file:
        torch.save({"version": _VERSION, "key": key, **asdict(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load(folder: Path, key: str) -> State | None:
    """Reads the state of the same training, or returns None where there is none yet.

    Errors: TrainingFailed for a file that is broken, or belongs to another training.
    """
    path = folder / "finetune.pt"
    if not path.exists():
        return None
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as broken:  # torch raises a dozen kinds
        raise TrainingFailed(
            f"{path} cannot be read ({type(broken).__name__}). Nothing was trained: delete it to "
            "begin anew, or put back a copy of it."
        ) from broken
    if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
        raise TrainingFailed(f"{path} is no checkpoint of this version. Choose another folder.")
    if found.pop("key", None) != key:
        raise TrainingFailed(
            f"{path} belongs to another training: its model, data or settings differ. Choose "
            "another folder, or delete it to begin anew."
        )
    return State(**found)
