"""The model of a hardened folder, made again and held to the hashes that were audited."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shieldnet.core.errors import ConfigError, DataError, VerificationFailed
from shieldnet.data.hashing import attribute_hashes, is_named_by, tensors_hash
from shieldnet.files import sources
from shieldnet.files.onnx_models import load_onnx
from shieldnet.files.programs import load_program
from shieldnet.files.weights import load_exactly, parse_weights
from shieldnet.shield.module import Shield
from shieldnet.shipping.contents import Contents
from shieldnet.shipping.description import Description
from shieldnet.shipping.parts import MODEL, ONNX, WEIGHTS
from shieldnet.shipping.reading import from_copy

_MAX_NAMED = 5
Source = str | nn.Module | Callable[[], Any]
"""``package.module:factory``, a function that returns the model, or the model itself."""


def given_model(source: Source | None, described: Description) -> nn.Module | None:
    """Returns the network that the weights go into, None for a model that is a file itself.

    A function is called, and ``package.module:factory`` is imported: that runs the user's code.
    Errors: ConfigError and DataError for what is no network.
    """
    if described.file != WEIGHTS:
        if source is not None:
            raise ConfigError(
                f"The folder holds the whole model as {described.file}: leave the model out."
            )
        return None
    if source is None:
        return None
    if isinstance(source, str):
        made: object = sources.load_model(source)
    else:
        made = source if isinstance(source, nn.Module) else _called(source)
    if isinstance(made, Shield):
        made = made.model
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"Expected the model as a torch module, a function that returns one, or as "
            f"package.module:factory; got {type(made).__name__}."
        )
    return made


def _called(source: object) -> object:
    if not callable(source):
        return source
    return source()


def weights_of(contents: Contents) -> dict[str, Tensor]:
    """Reads the weights; raises VerificationFailed where they are not the described ones."""
    state = parse_weights(contents.files[WEIGHTS], WEIGHTS)
    if tensors_hash(state) != contents.description.weights:
        raise VerificationFailed(f"{WEIGHTS} holds other weights than {MODEL} names.")
    return state


def made_model(contents: Contents, given: nn.Module | None) -> nn.Module:
    """Returns the model that was audited, in evaluation mode.

    given: the network that the weights are put into; None for a model that is a file itself.
    Errors: DataError for weights that are not the network's, by name; VerificationFailed for a
        model that has these weights and is another all the same.
    """
    described = contents.description
    if described.file != WEIGHTS:
        load = _onnx if described.file == ONNX else _program
        model = from_copy(
            contents.files[described.file], described.source, lambda path: load(path, described)
        )
    elif given is None:
        raise ConfigError(
            f"The folder holds the weights of {described.kind} and not its code: give "
            f"model={described.source or 'package.module:factory'!r}, or the model itself."
        )
    else:
        state = weights_of(contents)
        try:
            load_exactly(given, state, WEIGHTS, type(given).__name__)
        except DataError as unfit:
            raise VerificationFailed(str(unfit)) from unfit
        model = given.eval()
    if not is_named_by(model, described.model):
        raise VerificationFailed(_another(model, described))
    return model


def _onnx(path: Path, described: Description) -> nn.Module:
    return load_onnx(path, described.output)


def _program(path: Path, described: Description) -> nn.Module:
    return load_program(path)


def _another(model: nn.Module, described: Description) -> str:
    name = type(model).__name__
    if name != described.kind:
        return f"The model is a {name}, the one that was audited was a {described.kind}."
    own, told = attribute_hashes(model), dict(described.attributes)
    differs = [key for key in sorted(own | told) if own.get(key) != told.get(key)] if told else []
    more = f" and {len(differs) - _MAX_NAMED} more" if len(differs) > _MAX_NAMED else ""
    what = (
        f"the attributes {', '.join(differs[:_MAX_NAMED])}{more} differ"
        if differs
        else "a buffer outside the state_dict, a layer, an attribute or a hook differs"
    )
    return (
        f"The {name} is not the model that was audited, though its weights are: {what}. Make it as "
        "it was made for the audit, by the same factory and with the same versions of its "
        "libraries, or audit it and write the folder again."
    )
