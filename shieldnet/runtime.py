"""The noise of exported graphs, from numpy alone: this one file is all that a server needs of us.

A graph with noise draws none itself; its server draws for every batch, anew, from the
operating system, and lets no client feed these inputs: who may feed zeros gets the scores without
noise. Copy this file beside a server that has neither torch nor shieldnet:

    noise = Noise.of_session(session)                            # or Noise.of_program("model.pt2")
    session.run(None, {"rows": rows, **noise.draw(len(rows))})
"""

import json
import math
import os
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FACTS = "shieldnet.json"
"""The name of what a file says of itself, beside the graph."""

Source = Callable[[int], bytes]
"""Returns as many random bytes as it is asked for."""

_OPEN = -1
_MAX_COMPARED = 2**22  # comparisons that a scan holds in memory at once
_MAX_PLAIN_DRAWS = 32  # up to which Python's own bisection is the quickest
_MANY_BYTES = 512  # from which asking the system costs more than all that is done with them
_PIECE = 2**17  # numbers that are drawn at once: they stay in the processor's cache


class Table(NamedTuple):
    """Cumulative probabilities times 2^128, and what makes a lookup quick.

    leading: their first 32 bits. exact: all 128. first: the integer below the first of them.
    decided: for the first 16 bits of a draw, how many probabilities lie below all such draws, or
    -1 where the other bits have a say. ordered: the leading bits as Python's integers.
    """

    leading: NDArray[np.uint32]
    exact: tuple[int, ...]
    first: int
    decided: NDArray[np.int16]
    ordered: tuple[int, ...]

    @classmethod
    def of(cls, exact: Sequence[int], first: int) -> "Table":
        """Makes a table of cumulative probabilities, in order, times 2^128."""
        ordered = tuple(min(threshold >> 96, 2**32 - 1) for threshold in exact)
        leading = np.array(ordered, dtype=np.uint32)
        words = np.arange(2**16, dtype=np.uint32) << 16
        low = leading.searchsorted(words, "left")
        high = leading.searchsorted(words | np.uint32(0xFFFF), "right")
        # Past the last threshold nothing is to be compared with: such draws are looked up in full.
        decided = np.where((low == high) & (low < len(leading)), low, _OPEN).astype(np.int16)
        return cls(leading, tuple(exact), first, decided, ordered)


def random_bytes(count: int) -> bytes:
    """Asks the operating system; for many bytes OpenSSL's generator stands for it.

    That is seeded by the operating system, and anew after a fork.
    """
    if count < _MANY_BYTES:
        return os.urandom(count)
    from ssl import RAND_bytes

    return RAND_bytes(count)


def drawn(
    count: int, table: Table, source: Source = random_bytes, constant_time: bool = False
) -> NDArray[np.int64]:
    """Draws integers by a table of cumulative probabilities. Shapes: -> (count,).

    Guarantee: every chance is exact to 2^-128.
    """
    if count <= _MAX_PLAIN_DRAWS and not constant_time:
        found = np.array(_one_by_one(count, table, source), dtype=np.int64)
    else:
        found = np.empty(count, dtype=np.int64)
        find = scanned if constant_time else looked_up
        for start in range(0, count, _PIECE):
            _fill(found[start : start + _PIECE], table, source, find)
    found += table.first
    return found


def looked_up(words: NDArray[np.uint32], table: Table) -> NDArray[np.int64]:
    """Counts, for every word, the leading bits that are no larger.

    The first 16 bits nearly always decide, by a table that stays in the cache. Shapes: (n,) -> (n,)
    """
    indices = table.decided.take(words >> np.uint32(16)).astype(np.int64)
    is_open = np.flatnonzero(indices == _OPEN)
    indices[is_open] = table.leading.searchsorted(words[is_open], "right")
    return indices


def scanned(words: NDArray[np.uint32], table: Table) -> NDArray[np.int64]:
    """Counts the same by comparing every word with the whole table, whatever it is."""
    most = max(1, _MAX_COMPARED // len(table.leading))
    counts = np.empty(len(words), dtype=np.int64)
    for start in range(0, len(words), most):
        part = slice(start, start + most)
        counts[part] = (words[part, None] >= table.leading).sum(1)
    return counts


def _one_by_one(count: int, table: Table, source: Source) -> list[int]:
    found = source(4 * count) if count else b""
    words = [int.from_bytes(found[at : at + 4], "little") for at in range(0, 4 * count, 4)]
    indices = [bisect_right(table.ordered, word) for word in words]
    for place, (index, word) in enumerate(zip(indices, words, strict=True)):
        if index and table.ordered[index - 1] == word:
            indices[place] = _by_all_bits(word, table, source)
    return indices


def _fill(found: NDArray[np.int64], table: Table, source: Source, find: Callable[..., Any]) -> None:
    words = np.frombuffer(source(4 * len(found)), dtype=np.uint32)
    found[:] = find(words, table)
    # Equal leading words leave the order open (chance 2^-32 each): 96 more bits decide.
    below = table.leading.take(found - 1, mode="clip")
    for tie in np.flatnonzero((below == words) & (found > 0)).tolist():
        found[tie] = _by_all_bits(int(words[tie]), table, source)


def _by_all_bits(word: int, table: Table, source: Source) -> int:
    """Draws 96 more bits of a uniform 32-bit word and compares all 128."""
    return bisect_right(table.exact, (word << 96) + int.from_bytes(source(12), "little"))


class Noise:
    """Draws the noise inputs of an exported graph.

    facts: what the file says of itself, as JSON. source: of random bytes; the operating system's.
    Errors: ValueError for facts that are none, and for noise of a law that is not known here.
    """

    def __init__(self, facts: str | bytes, source: Source = random_bytes) -> None:
        said = json.loads(facts)
        if not isinstance(said, dict) or said.get("shieldnet") != 1:
            raise ValueError("Expected the facts of a graph that shieldnet exported, version 1.")
        self._source = source
        self._inputs = {name: _Input(name, law) for name, law in said["noise"].items()}

    @classmethod
    def of_program(cls, path: str | os.PathLike[str], source: Source = random_bytes) -> "Noise":
        """Reads the facts of a .pt2 file; nothing else of it is read."""
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"extra/{FACTS}")]
            if len(names) != 1:
                raise ValueError(f"{path} is no graph that shieldnet exported: it has no {FACTS}.")
            return cls(archive.read(names[0]), source)

    @classmethod
    def of_session(cls, session: Any, source: Source = random_bytes) -> "Noise":
        """Reads the facts of a session of ONNX Runtime."""
        facts: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        if FACTS not in facts:
            raise ValueError(f"The model is no graph that shieldnet exported: it has no {FACTS}.")
        return cls(facts[FACTS], source)

    def __repr__(self) -> str:
        return f"Noise({', '.join(map(repr, self._inputs.values())) or 'none'})"

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the inputs that no client may feed."""
        return tuple(self._inputs)

    def draw(self, rows: int) -> dict[str, NDArray[Any]]:
        """Draws the noise of one batch, for each input by name; never use it for another batch."""
        return {name: one.draw(rows, self._source) for name, one in self._inputs.items()}


class _Input:
    """Draws one input: a column, or several that are stacked behind the last axis."""

    def __init__(self, name: str, said: Mapping[str, Any]) -> None:
        self._name, self._sizes = name, tuple(said["sizes"])
        self._dtype = np.dtype(said["dtype"])
        self._columns = [_column(name, law) for law in said["laws"]]

    def __repr__(self) -> str:
        behind = (len(self._columns),) if len(self._columns) > 1 else ()
        sizes = ", ".join(map(str, ("rows", *self._sizes, *behind)))
        return f"{self._name}: {self._dtype} ({sizes})"

    def draw(self, rows: int, source: Source) -> NDArray[Any]:
        shape = (rows, *self._sizes)
        columns = [column(math.prod(shape), source).reshape(shape) for column in self._columns]
        noise = columns[0] if len(columns) == 1 else np.stack(columns, -1)
        return noise.astype(self._dtype)


def _column(name: str, law: Mapping[str, Any]) -> Callable[[int, Source], NDArray[np.int64]]:
    if law["law"] == "table":
        table = Table.of([int(threshold, 16) for threshold in law["exact"]], law["first"])
        start = law.get("from")
        if start is None:
            return lambda count, source: drawn(count, table, source)
        return lambda count, source: start - drawn(count, table, source)
    if law["law"] == "words":
        return _words
    if law["law"] == "quotient of 63 bits":
        divisor = int(law["divisor"])
        return lambda count, source: (_words(count, source) & (2**63 - 1)) // divisor
    raise ValueError(f"The noise of {name} is of a law that is not known here: {law['law']!r}.")


def _words(count: int, source: Source) -> NDArray[np.int64]:
    return np.frombuffer(source(8 * count) if count else b"", dtype=np.int64)
