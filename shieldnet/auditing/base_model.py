"""The public model that was fine-tuned, with which attacks compare: found, and checked."""

import copy
import math

import torch
from torch import nn

from shieldnet.attacks.positions.readings import mean_over, read_by
from shieldnet.attacks.positions.truth import Truth
from shieldnet.auditing.several import asked_like, model_itself
from shieldnet.core.errors import ConfigError, ShieldnetError
from shieldnet.data.examples import Examples
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent
from shieldnet.training.result import Finetuned

_ROWS_READ = 64
_WORSE_THAN_GUESSING = 1.0  # nats a token: no model of these tokens is that sure of others


def base_of(
    given: object,
    finetuned: object,
    bare: Shield,
    extent: Extent | None,
    examples: Examples,
    padding: int | None,
) -> nn.Module | None:
    """Returns the base as the audited model is asked, or None where there is none.

    given: by the user; else the model that ``finetune`` started from. It is copied if it is in
    training mode. examples: some records, about which it is asked.
    Errors: ConfigError for a base that does not answer as the model does, or reads the tokens worse
        than a guess: it is then of another vocabulary.
    """
    if given is None:
        started = finetuned.base if isinstance(finetuned, Finetuned) else None
        if started is None or extent is None:
            return None
        try:
            return _checked(started, bare, extent, examples, padding)
        except ConfigError:  # changed since; it was not asked for
            return None
    if not isinstance(given, nn.Module):
        raise ConfigError(
            f"Expected base as the public model that was fine-tuned, a module; got "
            f"{type(given).__name__}."
        )
    if extent is None:
        raise ConfigError(
            "A base is compared with at the positions of an answer, such as a text's tokens; this "
            "model gives one row an answer. Leave base out."
        )
    return _checked(given, bare, extent, examples, padding)


def _checked(
    base: nn.Module, bare: Shield, extent: Extent, examples: Examples, padding: int | None
) -> nn.Module:
    if base is model_itself(bare.model):
        raise ConfigError(
            "Expected base as the model before it was fine-tuned, got the audited model itself. "
            "Keep a copy before training: base = copy.deepcopy(model)."
        )
    asked = asked_like(bare.model, copy.deepcopy(base).eval() if base.training else base)
    shield = bare.with_model(asked)
    few = examples.shuffled(torch.arange(min(len(examples), _ROWS_READ)))
    truth = Truth.of(few, extent, padding)
    try:
        readings = read_by(shield, few, truth, extent.classes)
    except Exception as unlike:
        said = str(unlike)
        if not isinstance(unlike, ShieldnetError):
            said = f"{type(unlike).__name__}: {said}."
        raise ConfigError(
            f"The base does not answer about the {examples.name} as the model does: {said} "
            "Expected the checkpoint that was fine-tuned, with the same tokenizer."
        ) from unlike
    if (seen := shield.extent) is None or (seen.classes, seen.positions) != (
        extent.classes,
        extent.positions,
    ):
        raise ConfigError(
            f"Expected a base that answers as the model does, {extent}; got {seen}: it has another "
            "vocabulary. Pass the checkpoint that was fine-tuned."
        )
    own = read_by(bare, few, truth, extent.classes)
    if torch.equal(own.floored(1e-30), readings.floored(1e-30)):
        raise ConfigError(
            "The base answers exactly as the audited model does, so it would hide what fine-tuning "
            "left behind. Pass the checkpoint from before the fine-tuning."
        )
    loss = -float(mean_over(readings.floored(1e-30), readings.counted).mean())
    guess = math.log(extent.classes)
    if loss > guess + _WORSE_THAN_GUESSING:
        raise ConfigError(
            f"The base reads the {examples.name} worse than a guess (loss {loss:.1f} a token, "
            f"{guess:.1f} for guessing): it is of another tokenizer, or was not trained on such "
            "texts. Pass the checkpoint that was fine-tuned."
        )
    return asked
