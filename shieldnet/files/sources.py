"""Models and data by their names on the command line; nothing is ever unpickled."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import isfunction, signature
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.data.examples import Examples, as_examples
from shieldnet.files.arrays import read_npy
from shieldnet.files.documents import read_json
from shieldnet.files.frames import Records, read_records
from shieldnet.files.images import read_images
from shieldnet.files.labels import target_numbers, whole_labels
from shieldnet.files.named_arrays import Arrays, narrow, read_named
from shieldnet.files.named_objects import called, named
from shieldnet.files.onnx_models import load_onnx
from shieldnet.files.programs import load_program
from shieldnet.files.recognition import advice, recognized
from shieldnet.files.sizes import require_file
from shieldnet.files.tables import TABLES, divided, is_table, read_table, renaming, unlabeled
from shieldnet.files.weights import load_weights
from shieldnet.outputs.adapters import as_module
from shieldnet.outputs.estimators import Estimator
from shieldnet.privacy.guarantee import Guarantee
from shieldnet.privacy.signing import KEY_VARIABLE, key_of_environment

_log = logging.getLogger(__name__)

MODEL_FILES = (".pt2", ".onnx")
_OTHER_FILES = (
    *(".bin", ".ckpt", ".h5", ".hdf5", ".joblib", ".keras", ".pickle", ".pkl"),
    *(".pt", ".pth", ".safetensors", ".skops", ".torchscript", ".ts"),
)
_MODEL_HELP = (
    "Expected MODEL as package.module:factory, a function that returns an nn.Module, a fitted "
    "classifier with predict_proba, a fitted regressor (or one of these itself) or a function of "
    f"arrays, or as a file ending in {', '.join(MODEL_FILES)}"
)
_IF_MODEL = " If it is the model itself, name a function that returns it: def model(): return {}."


@dataclass(frozen=True)
class Read:
    """Holds what a reader found: arrays, column names of a table, values of subgroups.

    inputs: an array, or several that a model takes by name.
    """

    inputs: NDArray[Any] | Arrays
    labels: NDArray[Any] | None = None
    columns: tuple[str, ...] = ()
    groups: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """Describes the reader of one form of data.

    expected: the form in words, for messages. fits: whether a name has this form. read: takes the
    name, the role of the data, the label column and the groups. takes_label, takes_groups: whether
    the form supports these.
    """

    expected: str
    fits: Callable[[str], bool]
    read: Callable[[str, str, str | None, Sequence[str]], Read]
    takes_label: bool = False
    takes_groups: bool = False


@dataclass(frozen=True)
class Loaded:
    """Holds examples with the column names of a table, and the values of subgroups by name.

    examples: examples, or records of a table that was not read as numbers. classes: names of the
    classes, if labels were words.
    """

    examples: Examples | Records
    columns: tuple[str, ...] = ()
    groups: dict[str, NDArray[Any]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def load_model(name: str, weights: str | None = None) -> nn.Module:
    """Reads a model file, or calls ``package.module:factory``; returns it in evaluation mode.

    name: a file, or an object or function that gives any model that ``Shield`` takes; its module is
    searched on the path and in the working directory, and importing it runs its code. For an ONNX
    file with several outputs, append the name of one: ``model.onnx:probabilities``.
    weights: for a factory, a .safetensors file, or a .pt file, read with ``weights_only=True``.
    Errors: DataError for any other file, with what it is and how to use it.
    """
    file, is_onnx, output = name.partition(".onnx:")
    path = Path(f"{file}.onnx" if is_onnx else name)
    if is_onnx and not (path.exists() or "/" in file):
        is_onnx, path = "", Path(name)  # a factory of a module called onnx
    if is_onnx or (":" not in name and path.suffix in MODEL_FILES):
        if weights is not None:
            raise ConfigError(f"{path} contains its weights: omit --weights.")
        return _file_model(path, output)
    if path.exists() or (":" not in name and path.suffix in _OTHER_FILES):
        if not path.is_dir():
            require_file(path, "model")
        raise DataError(f"{name} {advice(recognized(path), path, as_weights=False)}")
    made = called(name, _MODEL_HELP, _IF_MODEL)
    if isfunction(made) and not signature(made, follow_wrapped=False).parameters:
        raise DataError(
            f"{_MODEL_HELP}; {name} returned the function {made.__name__}, which takes no input. "
            "A model takes one."
        )
    try:
        model = as_module(made)
    except ConfigError as unusable:
        returned = f"{name} returned {type(made).__name__}"
        raise DataError(f"{_MODEL_HELP}; {returned}. {unusable}") from unusable
    if weights is not None and model is not made:
        raise ConfigError(f"{name} is not a torch module and contains its weights: omit --weights.")
    if weights is not None:
        load_weights(model, Path(weights), name)
    return model.eval()


def _file_model(path: Path, output: str = "") -> nn.Module:
    if path.is_dir():
        raise DataError(f"{path} {advice(recognized(path), path, as_weights=False)}")
    require_file(path, "model")
    contents = recognized(path)
    expected = {".pt2": "exported", ".onnx": "onnx"}[path.suffix]
    if contents.kind not in (expected, "unknown"):
        raise DataError(f"{path} {advice(contents, path, as_weights=False)}")
    return load_onnx(path, output) if path.suffix == ".onnx" else load_program(path)


def load_object(name: str, role: str, *, call: bool = False) -> Any:
    """Returns the object ``package.module:name``, or with ``call`` its result."""
    expected = f"Expected {role} as package.module:name"
    return called(name, expected) if call else named(name, expected)


def load_examples(
    name: str,
    role: str,
    *,
    label: str | None = None,
    groups: Sequence[str] = (),
    as_records: bool = False,
    targets: bool | None = False,
) -> Loaded:
    """Reads examples from a file, a folder of images, or ``package.module:factory``.

    role: what the examples are, for messages. label: label column of a table, or label array of an
    .npz file; by default the one named label, labels, y or target. groups: columns of a table, or
    arrays of an .npz file, whose values are subgroups. Labels may be missing if they are not
    needed. Words as labels are numbered in alphabetical order; apply ``common_classes`` to several
    sets of one task. as_records: whether to keep a table with its words, missing values and labels,
    for a model that takes them. targets: as in ``as_examples``.
    Errors: DataError for unreadable data, ConfigError for label or groups of a form without them.
    """
    reader = next((candidate for candidate in READERS if candidate.fits(name)), None)
    if label is not None and not (reader and reader.takes_label):
        raise ConfigError(
            f"--label names a column of a table ({', '.join(TABLES)}) or an array of an .npz, not "
            f"one of {name}."
        )
    if groups and not (reader and reader.takes_groups):
        raise ConfigError(f"--group names a column of a table or an array of an .npz, not {name}.")
    if reader is None and ":" in name:
        made = called(name, f"Expected the {role} as a function's result")
        return Loaded(_as_records(made) if as_records else as_examples(made, role, targets=targets))
    if reader is None:
        expected = ", ".join(reader.expected for reader in READERS)
        raise DataError(
            f"Expected the {role} as {expected}, or package.module:factory; got {name!r}."
            f"{renaming(Path(name))}"
        )
    if as_records and is_table(Path(name)):
        records, values = read_records(Path(name), role, label, groups)
        if targets and records.labels is not None:
            target_numbers(records.labels, name)
        return Loaded(records, groups=values)
    read = reader.read(name, role, label, groups)
    inputs, labels, columns, subgroups = read.inputs, read.labels, read.columns, read.groups
    narrowed = narrow(inputs)
    if labels is None:
        return Loaded(as_examples(narrowed, role), columns, subgroups)
    if as_records:
        if isinstance(inputs, dict):
            raise DataError(
                f"Expected arrays x and y in {name} for an estimator, which reads one table; got "
                f"{', '.join(inputs)} beside the labels."
            )
        return Loaded(Records(inputs, labels), columns, subgroups)
    if targets:
        pair = narrowed, target_numbers(labels, name)
        return Loaded(as_examples(pair, role, targets=True), columns, subgroups)
    whole, classes = whole_labels(labels)
    examples = as_examples((narrowed, whole), role, targets=targets)
    return Loaded(examples, columns, subgroups, classes)


def _as_records(made: Any) -> Records:
    is_pair = isinstance(made, tuple | list) and len(made) == 2
    return Records(*made) if is_pair else Records(made, None)


def common_classes(sets: Mapping[str, Loaded]) -> dict[str, Loaded]:
    """Numbers classes given as words alphabetically, consistently over all sets.

    Errors: DataError if one set has words and another has numbers.
    """
    labeled = {role: loaded for role, loaded in sets.items() if loaded.examples.labels is not None}
    worded = {role for role, loaded in labeled.items() if loaded.classes}
    if not worded:
        return dict(sets)
    if plain := set(labeled) - worded:
        raise DataError(
            f"Expected labels of one kind in every set, got words for the {min(worded)} and "
            f"numbers for the {min(plain)}."
        )
    classes = sorted({name for loaded in labeled.values() for name in loaded.classes})
    _log.info("classes: %s", ", ".join(f"{number} = {name}" for number, name in enumerate(classes)))
    number_of = {name: number for number, name in enumerate(classes)}

    def numbered(loaded: Loaded) -> Loaded:
        if loaded.examples.labels is None or isinstance(loaded.examples, Records):
            return loaded
        places = torch.tensor([number_of[name] for name in loaded.classes])
        examples = replace(loaded.examples, labels=places[loaded.examples.labels])
        return replace(loaded, examples=examples, classes=tuple(classes))

    return {role: numbered(loaded) for role, loaded in sets.items()}


def common_columns(sets: Iterable[Loaded]) -> tuple[str, ...]:
    """Returns the columns of all tables; raises DataError if they differ.

    Sets that are not tables have no column names.
    """
    names = {loaded.columns for loaded in sets}
    if len(names - {()}) > 1:
        shown = " and ".join(f"({', '.join(columns)})" for columns in sorted(names - {()})[:2])
        raise DataError(f"Expected the same columns in every table, got {shown}.")
    return max(names, key=len, default=())


def common_groups(members: Loaded, nonmembers: Loaded) -> dict[str, tuple[object, object]]:
    """Pairs the subgroups of members and nonmembers, as ``audit`` takes them."""
    return {name: (values, nonmembers.groups[name]) for name, values in members.groups.items()}


def load_sets(
    names: Mapping[str, str | None],
    model: nn.Module,
    *,
    label: str | None = None,
    groups: Sequence[str] = (),
    targets: bool = False,
) -> dict[str, Any]:
    """Reads the sets of an audit, as arguments of ``audit``.

    names: of members, nonmembers and auxiliary; None for a missing set. model: determines whether
    tables are read with words and missing values, as for an estimator. targets: whether labels are
    the targets of a regression.
    """
    as_records = isinstance(model, Estimator)
    loaded = {
        role: load_examples(
            name, role, label=label, groups=groups, as_records=as_records, targets=targets
        )
        for role, name in names.items()
        if name is not None
    }
    sets = common_classes(loaded)
    return {
        **{role: part.examples for role, part in sets.items()},
        "columns": common_columns(sets.values()),
        "groups": common_groups(sets["members"], sets["nonmembers"]),
    }


def load_training(
    names: Mapping[str, str | None], *, label: str | None = None, targets: bool = False
) -> dict[str, Any]:
    """Reads training and held-out records from files or ``package.module:factory``.

    Returns them by role, as ``finetune`` takes them; None for a missing set. targets: as in
    ``load_sets``.
    """
    given = {role: name for role, name in names.items() if name is not None}
    files = {role: source for role, source in given.items() if ":" not in source}
    sets = {
        role: load_examples(source, role, label=label, targets=targets)
        for role, source in files.items()
    }
    arguments: dict[str, Any] = dict.fromkeys(names)
    for role, loaded in common_classes(sets).items():
        if loaded.examples.labels is None:
            columns = loaded.columns
            way = f" {unlabeled(columns, given[role])}" if columns else ""
            raise DataError(f"Expected labels in {given[role]}, got inputs only.{way}")
        arguments[role] = loaded.examples.in_own_form()  # type: ignore[union-attr]  # no Records
    for role in given.keys() - files.keys():
        expected = f"Expected the {role} as a file or package.module:factory"
        arguments[role] = called(given[role], expected)
    return arguments


def load_guarantee(path: str | Path) -> Guarantee:
    """Reads a guarantee that ``finetune`` wrote; its epsilon is recomputed, not read.

    If the environment has a key (SHIELDNET_KEY), unsigned guarantees are refused.
    """
    document = read_json(path, "guarantee")
    try:
        guarantee = Guarantee.read(document)
    except KeyError as missing:
        raise DataError(
            f"{path} is not a guarantee as finetune writes it: it has no {missing}."
        ) from missing
    except (ValueError, TypeError) as broken:
        raise DataError(f"{path} is not a guarantee as finetune writes it: {broken}") from broken
    if guarantee.seal == "unsigned" and key_of_environment() is not None:
        raise DataError(
            f"{path} is not signed, but {KEY_VARIABLE} is set: anyone with access to the file "
            "could have changed it. Write it with the key in the environment, or unset "
            f"{KEY_VARIABLE} to read it as unsigned."
        )
    return guarantee


def _table(name: str, role: str, label: str | None, groups: Sequence[str]) -> Read:
    path = Path(name)
    return Read(*divided(read_table(path, role), label, groups, path))


def _npz(name: str, role: str, label: str | None, groups: Sequence[str]) -> Read:
    return Read(*read_named(name, role, label, groups))


def _npy(name: str, role: str, label: str | None, groups: Sequence[str]) -> Read:
    inputs, comma, labels = name.partition(",")
    return Read(read_npy(Path(inputs), role), read_npy(Path(labels), role) if comma else None)


def _images(name: str, role: str, label: str | None, groups: Sequence[str]) -> Read:
    return Read(*read_images(Path(name), role))


READERS = (
    Reader(
        "a file ending in .npz (arrays x and y, or the model's inputs by name and labels)",
        lambda name: name.endswith(".npz"),
        _npz,
        takes_label=True,
        takes_groups=True,
    ),
    Reader(".npy (or inputs.npy,labels.npy)", lambda name: name.endswith(".npy"), _npy),
    Reader(
        ", ".join(TABLES),
        lambda name: is_table(Path(name)),
        _table,
        takes_label=True,
        takes_groups=True,
    ),
    Reader(
        "a folder with one subfolder of images per class",
        lambda name: Path(name).is_dir(),
        _images,
    ),
)
"""Readers of files and folders; the first that fits is used. A new form needs a line here."""
