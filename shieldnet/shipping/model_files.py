"""The files that hold a model: weights by name, or the graph that it was read from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from shieldnet.core.errors import ConfigError
from shieldnet.data.hashing import attribute_hashes, tensors_hash, weights_hash
from shieldnet.files.onnx_models import OnnxModel
from shieldnet.files.programs import Program, clean_program
from shieldnet.files.sizes import require_bytes, require_file
from shieldnet.files.weights import weights_bytes
from shieldnet.outputs.estimators import Estimator, Regressor
from shieldnet.outputs.functions import Around
from shieldnet.shield.module import Shield
from shieldnet.shipping.description import Description, GraphFacts, answers_of, inputs_of
from shieldnet.shipping.graphs import facts_of
from shieldnet.shipping.parts import GRAPHS, ONNX, PROGRAM, WEIGHTS

_ESTIMATOR = (
    "is scikit-learn's, and only a pickle would hold it, which runs code when it is read. A "
    "pipeline is not shipped as a folder: ship its code, shield.toml and the report of the audit. "
    "Where skl2onnx can convert it, audit and harden the .onnx file itself, as the hashes in a "
    "report are of what was audited: shieldnet audit {} ..., then shieldnet harden with the same "
    "arguments"
)
_FUNCTION = (
    "is a function of arrays, and only a pickle would hold it, which runs code when it is read. "
    "Give the .onnx file itself, or a torch module"
)
_COMPILED = "_orig_mod."
_LONG_NAME = 200


def files_of(
    shield: Shield, source: str, graphs: Mapping[str, bytes], example: Any
) -> tuple[dict[str, bytes], Description]:
    """Returns the files that hold a model and its shield's graphs, and how it is made of them.

    source, graphs, example: as in ``save_hardened``.
    Errors: ConfigError for a model that only a pickle holds, and for a compiled one; DataError for
        graphs that ``sn.export`` did not write.
    """
    model = shield.model
    _refuse_pickled(model)
    if wrong := graphs.keys() - set(GRAPHS):
        raise ConfigError(f"Expected graphs as {' and '.join(GRAPHS)}, got {min(wrong)}.")
    kinds = {ONNX: OnnxModel, PROGRAM: Program}
    file = next((name for name, kind in kinds.items() if isinstance(model, kind)), WEIGHTS)
    if file in graphs:
        raise ConfigError(f"{file} holds the model itself: the shield's graph cannot be there too.")
    weights = None
    if file == WEIGHTS:
        content, name = _weights(model), source
        weights = tensors_hash(model.state_dict())
    else:
        content, name = _graph(model, source), str(model.name)
        if graphs:
            raise ConfigError("A model that is a whole graph itself has no graph of its shield.")
    held = {
        name: facts_of(name, graphs[name], weights or "", shield.settings.digest())
        for name in sorted(graphs)
    }
    described = Description(
        file=file,
        source=name,
        kind=type(model).__name__,
        answers=answers_of(shield.settings),
        model=weights_hash(model),
        weights=weights,
        output=model.output if isinstance(model, OnnxModel) else "",
        inputs=inputs_of(example, model),
        graphs=held if file == WEIGHTS else {file: GraphFacts("model")},
        attributes=_attributes(model) if file == WEIGHTS else {},
    )
    return {**graphs, file: content}, described


def _attributes(model: nn.Module) -> dict[str, str]:
    """Returns hashes of the attributes whose names a description takes."""
    hashes = attribute_hashes(model)
    return {name: hashes[name] for name in hashes if name.isprintable() and len(name) < _LONG_NAME}


def _refuse_pickled(model: nn.Module) -> None:
    if isinstance(model, Around):
        name, reason = repr(model), _FUNCTION
        if isinstance(model, Estimator):
            of_values = isinstance(model, Regressor)
            given = "model.onnx:variable --outputs values --calibrate public.csv"
            if not of_values:
                given = "model.onnx:probabilities --outputs probabilities"
            name, reason = model.name, _ESTIMATOR.format(given)
        raise ConfigError(f"A hardened folder holds no pickle: {name} {reason}.")


def _weights(model: nn.Module) -> bytes:
    if any(_COMPILED in name for name in model.state_dict()):
        raise ConfigError(
            "The model is compiled. Put the shield around the module in it, model._orig_mod, and "
            "compile what load_hardened returns."
        )
    return weights_bytes(model)


def _graph(model: nn.Module, source: str) -> bytes:
    """Returns the content of the file that a model was read from."""
    if isinstance(model, OnnxModel):
        if not source:
            return model.content
        file, is_named, _ = source.partition(".onnx:")
        path = Path(f"{file}.onnx" if is_named else source)
        require_bytes(require_file(path, "model"), path, "model")
        return path.read_bytes()
    if not source:
        raise ConfigError(f"Expected model= as the .pt2 file that {model!r} was read from.")
    return clean_program(Path(source))
