"""A cache of results on disk, one file per fingerprint; nothing is unpickled."""

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
    """Caches arrays in a folder, one .npz file per fingerprint.

    Files are written atomically, so that a killed run leaves no partial file; an unreadable file is
    computed again.
    """

    folder: Path

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Returns the arrays of a fingerprint, or None if there are none."""
        path = self._path(key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            return None
        except Exception:  # damaged in one of many ways: computed again
            return None

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes the arrays of a fingerprint; of concurrent writers, the last one wins."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it reveals the records
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
    path = Path(folder).resolve()  # workers may have another working directory
    if path.exists() and not path.is_dir():
        raise ConfigError(f"Expected cache to be a folder, got the file {path}.")
    return Cache(path)


def text_array(document: object) -> NDArray[Any]:
    """Encodes a JSON document as an array, to cache it with other arrays."""
    return np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)


def read_text_array(array: NDArray[Any]) -> Any:
    """Decodes a document that ``text_array`` encoded."""
    return json.loads(array.tobytes())
