"""What a fingerprint has seen so far, where it is, and how it refuses what it cannot read."""

import types
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

from shieldnet.core.errors import ConfigError
from shieldnet.running import code_objects
from shieldnet.running.origins import file_content

Setting = Literal["cache", "checkpoint"]
"""The setting of the user for which a fingerprint is made."""
_PURPOSES = {
    "cache": "results that depend on it cannot be cached",
    "checkpoint": "a checkpoint cannot tell whether it belongs to the same training",
}
_MOST_NAMED = 8


class Seen(dict[int | str, tuple[int, object]]):
    """Holds objects listed so far, by id (files by path): position, and the object, kept alive.

    whole_files: whether the text of a whole file counts. setting: what the fingerprint is for.
    place: names of the objects that lead to the current one.
    """

    def __init__(self, *, whole_files: bool = True, setting: Setting = "cache") -> None:
        super().__init__()
        self.whole_files, self.setting = whole_files, setting
        self.place: list[str] = []

    def text(self, path: str | None, *, any_name: bool) -> bytes:
        """Returns the text of a file of which code is used, if it counts.

        any_name: whether the code may read names of the file that it does not show.
        """
        return file_content(path) if self.whole_files or any_name else b""

    @contextmanager
    def inside(self, name: object) -> Iterator[None]:
        """Names what is listed within it."""
        self.place.append(str(name))
        try:
            yield
        finally:
            self.place.pop()

    @property
    def where(self) -> str:
        """Returns the path to the current object, such as ``Net.layer.source``."""
        names = [name for name in self.place if name]
        if len(names) > _MOST_NAMED:
            names = [*names[: _MOST_NAMED // 2], "...", *names[-_MOST_NAMED // 2 :]]
        return ".".join(names)

    def unknown(self, kind: str) -> ConfigError:
        """Returns the error for an object whose content is unknown."""
        where = f" ({self.where})" if self.where else ""
        return ConfigError(
            f"The content of a {kind} is unknown{where}, so {_PURPOSES[self.setting]}. Omit "
            f"{self.setting}=, or replace it by plain data, a function or a module."
        )

    def unseen(self, user: str, used: str) -> ConfigError:
        """Returns the error for code that reads what no name in it shows."""
        where = f" ({self.where})" if self.where and self.where != user else ""
        return ConfigError(
            f"{user}{where} uses {used}, so what it reads is unknown before it runs, and "
            f"{_PURPOSES[self.setting]}. Omit {self.setting}=, or name what it reads."
        )

    def unread(self, path: str, why: str = "") -> ConfigError:
        """Returns the error for a file that cannot be read."""
        importer = f", which {self.where} imports" if self.where else ""
        return ConfigError(f"Cannot read {path}{importer}{why}. Omit {self.setting}=.")

    def require_seen(self, code: types.CodeType, known: Collection[str] = ()) -> None:
        """Raises ConfigError for code that reads something which no name in it shows.

        known: names that the user defined in the code's module, so that they are no built-ins.
        """
        if unseen := code_objects.unseen(code, known):
            raise self.unseen(code.co_name, unseen[0])
