"""Detectors: a list with one dict of fields for each image, as torchvision's models return it.

The list is the axis of the images, so fields are named once, whatever the batch's size: ``boxes``,
``scores``, ``labels``. Within an image each box is a row. How many boxes there are is an answer
too, and nothing bounds it: the privacy cost is infinite, whatever the defenses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from shieldnet.core.errors import AnswerError
from shieldnet.outputs.nested import Path, leaves, written
from shieldnet.shield.fields import place_of, refuse_undefended, require_named
from shieldnet.shield.settings import ShieldSettings

_STEPS = 32  # of the suggested range of boxes
_SIDE = 1024  # of images of unknown size
_CHANNELS = (1, 3, 4)


def require_covered(
    output: list[Any], settings: ShieldSettings, images: Sequence[Tensor] = ()
) -> None:
    """Raises AnswerError for fields without defenses, and for what cannot be said of boxes.

    images: what the model was asked, whose longer side is the suggested range of boxes.
    """
    if settings.reads_inputs:
        raise AnswerError(
            "Expected a tensor with a row for each input, as a defense draws its noise from the "
            "inputs (KeyedNoise(on='input')); the model returned a list of dicts, as a detector "
            "does. Use RoundTo, Round or GaussianNoise."
        )
    for image in output:
        require_named(image, settings)
        try:
            refuse_undefended(image, place_of(image, settings), settings)
        except AnswerError as refused:
            line = _line(dict(leaves(image)), _side_of(images))
            if line is None:
                raise
            names = ", ".join(map(str, image))
            raise AnswerError(
                f"The model returns a list of dicts, one for each image, with {names}, as a "
                "detector does, and not all of them are named and have defenses; nothing was "
                f"released. Name each once, and leave out what nobody needs (drop=): {line}. Boxes "
                "lie between 0 and the longer side of the image, or 1 where they are normalized; a "
                "step that is smaller than the boxes keeps their sizes."
            ) from refused


def _side_of(images: Sequence[Tensor]) -> int:
    """Returns the longer side of the images among the inputs, with 1, 3 or 4 channels."""
    sides = []
    for asked in images:
        if asked.dim() in (3, 4) and asked.is_floating_point():
            channels, height, width = asked.shape[-3:]
            if channels in _CHANNELS:
                sides.append(max(height, width))
            elif width in _CHANNELS:
                sides.append(max(channels, height))
    return max(sides, default=_SIDE)


def _line(fields: Mapping[Path, Any], side: int) -> str | None:
    """Returns a call that defends scores and boxes; None where there are no scores.

    side: of the image, in pixels.
    """
    scores = [
        path
        for path, leaf in fields.items()
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() == 1
    ]
    if not scores:
        return None
    main = next((path for path in scores if path[-1] in ("scores", "score")), scores[0])
    numbers = fields[main]
    is_chance = bool(((numbers >= 0) & (numbers <= 1)).all())
    kinds = {written(main): "binary_probabilities" if is_chance else "binary_logits"}
    also, drop = {}, []
    for path, leaf in fields.items():
        name, is_tensor = written(path), isinstance(leaf, Tensor)
        if path == main:
            continue
        if is_tensor and leaf.is_floating_point() and leaf.dim() == 2:
            kinds[name] = "values"
            also[name] = f"(sn.ClipRange(0.0, {side:.1f}), sn.RoundTo({side / _STEPS}))"
        elif is_tensor and leaf.dim() == 1 and not leaf.is_floating_point():
            also[name] = "()"
        else:
            drop.append(name)
    given = ", ".join(f"{name!r}: {code}" for name, code in also.items())
    parts = [f"outputs={kinds!r}"]
    parts += [f"also={{{given}}}"] if also else []
    parts += [f"drop={tuple(drop)!r}"] if drop else []
    return f"sn.harden(model, {', '.join(parts)})"
