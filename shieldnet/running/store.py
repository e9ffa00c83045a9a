"""Results on disk, one file under each fingerprint; nothing is unpickled."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shieldnet.core.errors import ConfigError


@dataclass(frozen=True)
class Cache:
    """Keeps arrays in a folder, one .npz file for each fingerprint.

    A file is written whole or not at all, so that a killed run leaves no half of one; what cannot
    be read is made again.
    """

    folder: Path

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Returns the arrays under a fingerprint, None where there are none."""
        path = self._path(key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            return None
        except Exception:  # damaged in one of a dozen ways: it is made again
            return None

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes arrays under a fingerprint; whoever writes last of several at once wins."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it tells of the records
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        unfinished = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # arrays by name
            unfinished.replace(self._path(key))
        finally:
            unfinished.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


def cache_in(folder: str | Path | None) -> Cache | None:
    """Returns a cache in a folder, or None for None."""
    if folder is None:
        return None
    path = Path(folder).resolve()  # workers may stand in another folder
    if path.exists() and not path.is_dir():
        raise ConfigError(f"Expected cache to be a folder, {path} is a file.")
    return Cache(path)


def text_array(document: object) -> NDArray[Any]:
    """Writes a JSON document as an array, to be kept beside others."""
    return np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)


def read_text_array(array: NDArray[Any]) -> Any:
    """Reads what ``text_array`` wrote."""
    return json.loads(array.tobytes())
