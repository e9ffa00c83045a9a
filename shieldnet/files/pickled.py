"""What a pickle says it holds: its opcodes are listed, and none of them is run."""

import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass

_MAX_OPCODES = 2_000_000
_STATE_DICTS = ("collections.OrderedDict", "EMPTY_DICT")
_OLD_MODULE = "module"  # what torch.save before 1.6 writes before the class of a module
_BESIDE = ("PROTO", "FRAME", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_BEFORE_THE_OBJECT = 3  # pickles that torch.save before 1.6 wrote: a number, a version, the system


@dataclass(frozen=True)
class Listed:
    """Holds what was listed.

    classes: and functions that are named. top: the class of the whole, or the opcode that begins
    it. states: what stands behind each of the keys that were looked for: a class or an opcode.
    """

    classes: tuple[str, ...]
    top: str
    states: dict[str, str]

    @property
    def is_dict(self) -> bool:
        """Says whether the whole is a dict."""
        return self.top == "EMPTY_DICT"


def listed(pickled: bytes, keys: tuple[str, ...] = ()) -> Listed:
    """Lists what a pickle names, as far as it can be read.

    keys: of a dict, whose values' kinds are told.
    """
    classes: dict[str, None] = {}
    states: dict[str, str] = {}
    top, waiting = "", ""
    for kind, argument in _events(pickled):
        if kind == "class":
            classes[argument] = None
        begins = argument if kind in ("class", "opcode") else ""
        if begins and not top:
            top = begins
        if begins and waiting:
            states.setdefault(waiting, begins)
        if kind == "string" and argument in keys:
            waiting = argument
        elif not (kind == "string" and argument == _OLD_MODULE):
            waiting = ""
    return Listed(tuple(classes), top, states)


def is_state_dict(begins: str) -> bool:
    """Says whether what begins so is a dict of weights, by all it shows."""
    return begins in _STATE_DICTS


def without_heads(saved: bytes) -> bytes:
    """Leaves out what ``torch.save`` before 1.6 wrote before the object."""
    stream = io.BytesIO(saved)
    try:
        for _ in range(_BEFORE_THE_OBJECT):
            for count, _ in enumerate(pickletools.genops(stream)):
                if count > _MAX_OPCODES:
                    return b""
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        return b""
    return stream.read()


def _events(pickled: bytes) -> Iterator[tuple[str, str]]:
    """Yields classes that are named, strings, and the other opcodes that make something."""
    strings: list[str] = []
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count > _MAX_OPCODES:
                return
            if opcode.name == "GLOBAL":
                yield "class", str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                yield "class", f"{strings[-2]}.{strings[-1]}"
            elif isinstance(argument, str):
                strings = [*strings[-1:], argument]
                yield "string", argument
            elif opcode.name not in _BESIDE:
                yield "opcode", opcode.name
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        return  # what was named before the damage is what can be said
