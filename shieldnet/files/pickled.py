"""Static inspection of pickles: lists their opcodes without running any."""

import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass

_MAX_OPCODES = 2_000_000
_STATE_DICTS = ("collections.OrderedDict", "EMPTY_DICT")
_OLD_MODULE = "module"  # written by torch.save before 1.6 in front of a module's class
_BESIDE = ("PROTO", "FRAME", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_BEFORE_THE_OBJECT = 3  # leading pickles of torch.save before 1.6: a number, a version, the system


@dataclass(frozen=True)
class Listed:
    """Holds what was found in a pickle.

    classes: names of classes and functions. top: class of the whole object, or its first opcode.
    states: for each requested key that was found, the class or opcode of its value.
    """

    classes: tuple[str, ...]
    top: str
    states: dict[str, str]

    @property
    def is_dict(self) -> bool:
        """Returns whether the whole object is a dict."""
        return self.top == "EMPTY_DICT"


def listed(pickled: bytes, keys: tuple[str, ...] = ()) -> Listed:
    """Lists what a pickle names, as far as it can be read.

    keys: keys of a dict to find the kinds of their values.
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
    """Returns whether an object with this class or first opcode looks like a dict of weights."""
    return begins in _STATE_DICTS


def without_heads(saved: bytes) -> bytes:
    """Skips what ``torch.save`` before 1.6 wrote in front of the object."""
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
    """Yields named classes, strings, and other opcodes that create objects."""
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
        return  # keep what was named before the damage
