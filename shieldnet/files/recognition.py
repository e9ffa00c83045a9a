"""Recognition of files passed as a model or weights, and advice on how to use them.

Files are never unpickled: recognition uses the names in an archive, the first bytes, and the
opcodes of a pickle, which are listed without running them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from shieldnet.core.errors import DataError
from shieldnet.files.pickled import Listed, is_state_dict, listed, without_heads
from shieldnet.files.sizes import content, opened_archive

Kind = Literal[
    "checkpoint",
    "exported",
    "folder",
    "hugging_face",
    "keras",
    "onnx",
    "pickle",
    "safetensors",
    "saved",
    "skops",
    "state_dict",
    "torchscript",
    "unknown",
]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_PICKLE = b"\x80"  # protocol 2 and later
_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_MAX_SHOWN_NAMES = 4  # keys of a checkpoint in a message
_STATES = ("model_state_dict", "state_dict", "model_state", "model", "net", "ema_state_dict")
_NOT_WEIGHTS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "lr_schedulers")
_COMPRESSED = (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")  # zlib, as joblib.dump(compress=3) writes
_PICKLED = (".pkl", ".pickle", ".joblib")


@dataclass(frozen=True)
class Recognized:
    """Holds what a file is.

    detail: the classes in a pickle, the keys of a checkpoint, or the type of another object that
    ``torch.save`` wrote. state: the keys of a checkpoint that lead to its weights. pickle: the
    listed content of a pickle.
    """

    kind: Kind
    detail: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    pickle: Listed | None = None


def recognized(path: Path) -> Recognized:
    """Determines what a file or folder is.

    Errors: DataError for a damaged or malicious archive, and for a missing file.
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
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return Recognized("safetensors")  # before pickles: its first byte can be anything
    if start.startswith(_LEGACY_TORCH):
        return _saved(path, without_heads(path.read_bytes()))
    if start.startswith(_PICKLE):
        return _pickle(path.read_bytes())
    if start.startswith(_COMPRESSED):
        return Recognized("pickle")
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
        if "schema.json" in archive.namelist():
            return Recognized("skops")
        if "data.pkl" not in names:
            return Recognized("unknown")
        pickled = content(archive, names["data.pkl"])
    return _saved(path, pickled)


def _pickle(pickled: bytes) -> Recognized:
    found = listed(pickled, _STATES)
    return Recognized("pickle", tuple(n for n in found.classes if not _is_plain(n)), pickle=found)


def _saved(path: Path, pickled: bytes) -> Recognized:
    """Distinguishes files of ``torch.save``: weights, a checkpoint with weights, or objects."""
    try:
        loaded = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # torch raises many kinds
        return _pickle(pickled)
    if isinstance(loaded, dict):
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return Recognized("state_dict")
        return Recognized("checkpoint", tuple(str(key) for key in loaded), _state_in(loaded))
    return Recognized("saved", (type(loaded).__name__,))


def _is_plain(name: str) -> bool:
    is_module = name.startswith("torch.nn.modules.")
    return not is_module and name.split(".")[0] in (
        "torch",
        "collections",
        "builtins",
        "__builtin__",
    )


def _state_in(loaded: dict[Any, Any], depth: int = 3) -> tuple[str, ...]:
    """Returns the keys that lead to a dict of tensors only, or () if there is none."""
    names = [name for name in _STATES if name in loaded]
    names += [name for name in loaded if isinstance(name, str) and name not in names]
    for name in names:
        value = loaded[name]
        if isinstance(value, dict) and value:
            if all(isinstance(inner, Tensor) for inner in value.values()):
                return (name,)
            if depth > 1 and name not in _NOT_WEIGHTS and (inside := _state_in(value, depth - 1)):
                return (name, *inside)
    return ()


def advice(contents: Recognized, path: Path, *, as_weights: bool) -> str:
    """Returns the end of a sentence that starts with the path: what it is, and how to use it.

    as_weights: whether it was passed with --weights rather than as MODEL.
    """
    if contents.kind == "state_dict" or (contents.kind == "safetensors" and not as_weights):
        return f"contains weights without their model. {_use(path)}"
    if contents.kind == "checkpoint":
        return _of_checkpoint(contents, path)
    if contents.kind == "pickle":
        return _of_pickle(contents, path)
    if contents.kind == "saved":
        return (
            f"contains a {contents.detail[0]} that torch.save wrote, neither a model nor a dict of "
            "weights. Use torch.save(model.state_dict(), 'weights.pt'). "
            f"{_use('weights.pt')}"
        )
    if contents.kind in ("exported", "onnx", "torchscript") and as_weights:
        return "is a complete model, not weights for another one." + _ALSO[contents.kind].replace(
            "PATH", repr(str(path))
        )
    return _WORDS[contents.kind].replace("PATH", str(path))


def _use(weights: object) -> str:
    return (
        "Pass a function that returns the model, together with the weights: "
        f"package.module:factory --weights {weights}"
    )


_EXPORT = (
    "program = torch.export.export(model, (example,), "
    'dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)); '
    'torch.export.save(program, "model.pt2")'
)
_ALSO = {
    "exported": " Pass it as MODEL, with the extension .pt2.",
    "onnx": " Pass it as MODEL.",
    "torchscript": (
        " It is TorchScript, which can write files while it is loaded. If you trust it, save its "
        "weights: torch.save(torch.jit.load(PATH).state_dict(), 'weights.pt')."
    ),
}
_WORDS = {
    "exported": "is an exported program: rename it to end in .pt2.",
    "folder": "is a folder. Pass a file ending in .pt2 or .onnx, or package.module:factory.",
    "hugging_face": (
        "is a Hugging Face folder. Pass package.module:factory, a function that returns "
        "AutoModelForSequenceClassification.from_pretrained('PATH'), or another class."
    ),
    "keras": (
        "is a Keras model, whose files can contain code. If you trust it, pass "
        "package.module:factory, a function that returns keras.saving.load_model(...) with "
        "KERAS_BACKEND=torch."
    ),
    "onnx": "is an ONNX model: rename it to end in .onnx.",
    "safetensors": "is a safetensors file: rename it to end in .safetensors.",
    "skops": (
        "is a skops file, in which trees and functions are safe only if you trust them. List them "
        "by skops.io.get_untrusted_types(file='PATH'), and pass package.module:factory, a function "
        "that returns skops.io.load('PATH', trusted=[those that you trust])."
    ),
    "torchscript": (
        "is TorchScript, which can write files while it is loaded and is deprecated by PyTorch. "
        f"Export the model instead, after model.eval(): {_EXPORT}."
    ),
    "unknown": (
        "is not a supported model file. Pass a file ending in .pt2 (torch.export.save) or .onnx, "
        "or a function that returns the model: package.module:factory."
    ),
}


def _of_checkpoint(contents: Recognized, path: Path) -> str:
    keys = contents.detail
    listed_keys = ", ".join(keys[:_MAX_SHOWN_NAMES])
    listed_keys += ", ..." if len(keys) > _MAX_SHOWN_NAMES else ""
    if not contents.state:
        return (
            f"is a checkpoint with more than weights in it ({listed_keys or 'nothing'}). Save only "
            f"model.state_dict(). {_use('weights.safetensors')}"
        )
    whose = " of Lightning" if "pytorch-lightning_version" in keys else ""
    at = "".join(f"[{key!r}]" for key in contents.state)
    known = contents.state[-1] in _STATES
    what = "only the weights" if known else "only what seems to be model.state_dict()"
    return (
        f"is a checkpoint{whose} with more than weights in it ({listed_keys}). Save {what}: "
        f"torch.save(torch.load({str(path)!r}, weights_only=True){at}, 'weights.pt'). "
        f"{_use('weights.pt')}"
    )


def _of_pickle(contents: Recognized, path: Path) -> str:
    classes = contents.detail
    shown = f" of {', '.join(classes[:_MAX_SHOWN_NAMES])}" if classes else ""
    is_of_torch = path.suffix in (".pt", ".pth", ".bin", ".ckpt") or contents.pickle is not None
    is_sklearn = any(name.startswith("sklearn.") for name in classes)
    if is_sklearn or path.suffix in _PICKLED or not is_of_torch:
        return (
            f"is a pickle{shown}, and unpickling runs any code in it, so it is not unpickled. "
            "Export a scikit-learn model to .onnx with skl2onnx, or, if you trust it, pass "
            "package.module:factory, your function that loads it and returns "
            f"joblib.load({str(path)!r})."
        )
    what, state = _whole_of(contents.pickle, path)
    return (
        f"{what}contains pickled objects{shown}, not only weights, and unpickling runs any code in "
        f"them, so it is not unpickled. If you trust it, save its weights: {state}. "
        f"{_use('weights.pt')}"
    )


def _whole_of(pickle: Listed | None, path: Path) -> tuple[str, str]:
    """Returns what a pickle is as a whole, and the line of code that saves its weights."""
    loaded = f"torch.load({str(path)!r}, weights_only=False)"
    if pickle is not None and pickle.is_dict:
        name = next((name for name in _STATES if name in pickle.states), None)
        if name is not None:
            of_model = "" if is_state_dict(pickle.states[name]) else ".state_dict()"
            return (
                "is a checkpoint that ",
                f"torch.save({loaded}[{name!r}]{of_model}, 'weights.pt')",
            )
    elif pickle is not None and "." in pickle.top and not _is_plain(pickle.top):
        return (
            f"is a whole {pickle.top.rpartition('.')[2]}, as torch.save(model) writes it, and ",
            f"torch.save({loaded}.state_dict(), 'weights.pt')",
        )
    return "", "torch.save(model.state_dict(), 'weights.pt')"
