"""Questions that a client asked before, remembered as keyed hashes in memory."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from shieldnet.outputs.micro_batches import pieces
from shieldnet.serving.asked import content

_MAX_REMEMBERED = 100_000


class Repeats:
    """Tells which rows of a call are new to a client.

    Rows are distinguished where every argument has as many; else the whole call counts as one
    question. The hashes are keyed by a secret of the process, and those unseen for longest go
    first: what is forgotten is charged again.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def new(
        self, client: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int
    ) -> list[bytes]:
        """Returns a hash of each row that is new, once; of a new whole call as many as its rows."""
        hashes = list(dict.fromkeys(self._hashes(client, args, kwargs, rows)))
        with self._lock:
            for name in hashes:
                if name in self._seen:
                    self._seen.move_to_end(name)
            return [name for name in hashes if name not in self._seen]

    def remember(self, hashes: list[bytes]) -> None:
        """Remembers rows that were charged."""
        with self._lock:
            self._seen.update(dict.fromkeys(hashes))
            while len(self._seen) > _MAX_REMEMBERED:
                self._seen.popitem(last=False)

    def _hashes(
        self, client: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int
    ) -> list[bytes]:
        values = (*args, *kwargs.values())
        if all(hasattr(value, "__len__") and not isinstance(value, Mapping) for value in values):
            calls, counts = pieces(args, dict(kwargs), 1)
            if len(counts) == rows and all(len(value) == rows for value in values):
                return [self._hash(client, content(*call)) for call in calls]
        whole = content(args, kwargs)
        return [self._hash(client, whole + number.to_bytes(8, "big")) for number in range(rows)]

    def _hash(self, client: str, asked: bytes) -> bytes:
        named = client.encode()
        return blake2b(named + b"\0" + asked, key=self._key, digest_size=16).digest()
