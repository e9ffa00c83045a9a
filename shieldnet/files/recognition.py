"""What a file that was given as a model or as weights really is, and the way that works for it.

Files are looked at, never unpickled: names in an archive, first bytes, and the opcodes of a pickle,
which are listed without being run.
"""

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shieldnet.core.errors import DataError
from shieldnet.files.limits import content, opened_archive

Kind = Literal[
    "checkpoint",
    "exported",
    "folder",
    "hugging_face",
    "keras",
    "onnx",
    "pickle",
    "safetensors",
    "state_dict",
    "torchscript",
    "unknown",
]

_MAX_OPCODES = 2_000_000
_HDF5 = b"\x89HDF\r\n\x1a\n"
_PICKLE = b"\x80"  # of protocol 2 and later, as any of the last ten years
_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_MAX_SHOWN_NAMES = 4  # keys of a checkpoint in a message
_STATES = ("model_state_dict", "state_dict", "model_state", "model", "net", "ema_state_dict")
_PICKLED = (".pkl", ".pickle", ".joblib")


@dataclass(frozen=True)
class Recognized:
    """Holds what a file is. detail: of a pickle, the classes in it; of a checkpoint, its keys."""

    kind: Kind
    detail: tuple[str, ...] = ()


def recognized(path: Path) -> Recognized:
    """Looks at a file or folder and says what it is.

    Errors: DataError for an archive that is damaged or hostile, and where there is no such file.
    """
    if path.is_dir():
        is_hugging_face = (path / "config.json").is_file()
        return Recognized("hugging_face" if is_hugging_face else "folder")
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as missing:
        raise DataError(f"Cannot read {path}: {missing.strerror}.") from missing
    if path.suffix in _PICKLED:
        return Recognized("pickle")
    if start.startswith(_ZIP):
        return _archive(path)
    if start.startswith(_HDF5):
        return Recognized("keras")
    if start.startswith(_LEGACY_TORCH):
        return _saved(path)
    if start.startswith(_PICKLE):
        return Recognized("pickle", _classes(path.read_bytes()))
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return Recognized("safetensors")
    if path.suffix == ".onnx":
        return Recognized("onnx")
    return Recognized("unknown")


def _archive(path: Path) -> Recognized:
    with opened_archive(path, "model") as archive:
        names = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            return Recognized("torchscript")
        if "archive_format" in names or "models/model.json" in names:
            return Recognized("exported")
        if "config.json" in archive.namelist():
            return Recognized("keras")
        if "data.pkl" not in names:
            return Recognized("unknown")
        classes = _classes(content(archive, names["data.pkl"]))
    return _saved(path, classes)


def _saved(path: Path, classes: Sequence[str] = ()) -> Recognized:
    """Tells apart what ``torch.save`` wrote: weights alone, a checkpoint with them, or objects."""
    try:
        loaded = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # torch raises a dozen kinds
        strange = tuple(name for name in classes if not _is_plain(name))
        return Recognized("pickle", strange)
    if isinstance(loaded, dict):
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return Recognized("state_dict")
        return Recognized("checkpoint", tuple(str(key) for key in loaded))
    return Recognized("unknown")


def _is_plain(name: str) -> bool:
    return name.split(".")[0] in ("torch", "collections", "builtins", "__builtin__")


def _classes(pickled: bytes) -> tuple[str, ...]:
    """Lists the classes and functions that a pickle names, without running it."""
    names: dict[str, None] = {}
    strings: list[str] = []
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count > _MAX_OPCODES:
                break
            if opcode.name == "GLOBAL":
                names[str(argument).replace(" ", ".")] = None
            elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                names[f"{strings[-2]}.{strings[-1]}"] = None
            elif isinstance(argument, str):
                strings = [*strings[-1:], argument]
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        return tuple(names)  # what was named before the damage is what can be said
    return tuple(names)


def advice(contents: Recognized, path: Path, *, as_weights: bool) -> str:
    """Returns the end of a sentence that begins with the path: what it is, and what works.

    as_weights: it was given with --weights, not as MODEL.
    """
    if contents.kind == "state_dict" or (contents.kind == "safetensors" and not as_weights):
        return f"holds weights without the model that they belong to. {_use(path)}"
    if contents.kind == "checkpoint":
        return _of_checkpoint(contents.detail, path)
    if contents.kind == "pickle":
        return _of_pickle(contents.detail, path)
    if contents.kind in ("exported", "onnx", "torchscript") and as_weights:
        return f"is a model of its own, and holds no weights for another.{_ALSO[contents.kind]}"
    return _WORDS[contents.kind].replace("PATH", str(path))


def _use(weights: object) -> str:
    return (
        "Give a function that returns the model, and the weights beside it: "
        f"package.module:factory --weights {weights}"
    )


_EXPORT = (
    "program = torch.export.export(model, (example,), "
    'dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)); '
    'torch.export.save(program, "model.pt2")'
)
_ALSO = {
    "exported": " Give it as MODEL, with the ending .pt2.",
    "onnx": " Give it as MODEL.",
    "torchscript": "",
}
_WORDS = {
    "exported": "is an exported program: rename it so that it ends in .pt2.",
    "folder": "is a folder. Give a file ending in .pt2 or .onnx, or package.module:factory.",
    "hugging_face": (
        "is a folder of Hugging Face. Give package.module:factory, a function that returns "
        "AutoModelForSequenceClassification.from_pretrained('PATH'), or another class."
    ),
    "keras": (
        "is a model of Keras, whose files can hold code. Give package.module:factory, a function "
        "that returns keras.saving.load_model(...) with KERAS_BACKEND=torch, where you trust it."
    ),
    "onnx": "is no file whose ending is .onnx. Rename it.",
    "safetensors": "is a safetensors file: rename it so that it ends in .safetensors.",
    "torchscript": (
        "is TorchScript, which can write files while it is loaded and is deprecated by PyTorch. "
        f"Export the model instead, after model.eval(): {_EXPORT}."
    ),
    "unknown": (
        "is no model that is read here. Give a file ending in .pt2 (torch.export.save) or .onnx, "
        "or a function that returns the model: package.module:factory."
    ),
}


def _of_checkpoint(keys: Sequence[str], path: Path) -> str:
    listed = ", ".join(keys[:_MAX_SHOWN_NAMES]) + (", ..." if len(keys) > _MAX_SHOWN_NAMES else "")
    state = next((key for key in _STATES if key in keys), None)
    if state is None:
        return (
            f"is a checkpoint with more than weights in it ({listed or 'nothing'}). Save "
            f"model.state_dict() alone. {_use('weights.safetensors')}"
        )
    whose = " of Lightning" if "pytorch-lightning_version" in keys else ""
    return (
        f"is a checkpoint{whose} with more than weights in it ({listed}). Save the weights alone: "
        f"torch.save(torch.load({str(path)!r}, weights_only=True)[{state!r}], 'weights.pt'). "
        f"{_use('weights.pt')}"
    )


def _of_pickle(classes: Sequence[str], path: Path) -> str:
    shown = f" of {', '.join(classes[:_MAX_SHOWN_NAMES])}" if classes else ""
    if path.suffix in _PICKLED and path.suffix not in (".pt", ".pth"):
        return (
            f"is a pickle{shown}, and unpickling runs whatever code is in it: it is not "
            "unpickled. Export a scikit-learn model to .onnx with skl2onnx, or give "
            "package.module:factory, a function of yours that loads it where you trust it."
        )
    return (
        f"holds pickled objects{shown}, not weights alone, and unpickling runs whatever code is in "
        "them: it is not unpickled. Where you trust it, save its weights: "
        "torch.save(model.state_dict(), 'weights.pt'). "
        f"{_use('weights.pt')}"
    )
