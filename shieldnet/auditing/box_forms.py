"""Boxes in another form than corners in pixels paint nothing: they are refused by name."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from shieldnet.attacks.positions.painted_shield import PaintedShield
from shieldnet.attacks.positions.painting import BACKGROUND, Painting
from shieldnet.auditing.targets import CORNERS, Target
from shieldnet.core.errors import AnswerError, DataError
from shieldnet.shield.module import Shield

_FEW = 0.1  # boxes that a model may release upside down, of all
_IMAGES = 32  # with boxes, that are looked at


def require_true_boxes(targets: Sequence[Target], size: tuple[int, int], role: str) -> None:
    """Raises DataError for true boxes that are no corners in pixels of these images."""
    boxes = torch.cat([target["boxes"].double() for target in targets])
    counts = torch.tensor([len(target["boxes"]) for target in targets])
    rows = torch.arange(len(targets)).repeat_interleave(counts)
    faults = (
        (_normalized(boxes, size), _NORMALIZED),
        (_upside_down(boxes), _UPSIDE_DOWN),
        (_outside(boxes, size), _OUTSIDE),
    )
    for wrong, words in faults:
        if wrong.any():
            raise DataError(
                f"Expected the boxes of the {role} as {CORNERS}, within images of "
                f"{_written(size)}; row {int(rows[wrong][0])} of the {role} has "
                f"{_said(boxes, wrong, words, size)}"
            )


def require_painted(bare: Shield, painting: Painting, images: Iterable[Tensor]) -> None:
    """Looks at the boxes that a model releases, until 32 images have some.

    bare: the shield without defenses: what these leave of a box, such as no area, is no fault.
    Errors: AnswerError for boxes that are no corners in pixels, and where all paint nothing.
    """
    name = painting.fields.boxes
    if name is None:
        return
    seen: list[Tensor] = []
    is_painted = False
    first = next(bare.parameters(), None)
    for part in images:
        with torch.no_grad():
            answers = bare(part.to(part.device if first is None else first.device, copy=True))
        boxes = [painting.held(answer)[name].double() for answer in answers]
        seen += [own for own in boxes if len(own)]
        is_painted |= bool((painting.answers(answers, bare)[..., BACKGROUND] < 1).any())
        if len(seen) >= _IMAGES:
            break
    if seen:
        _require_form(torch.cat(seen), painting.size, is_painted=is_painted)


def share_without_area(shield: PaintedShield, images: Tensor) -> float:
    """Returns which share of the boxes that are released about images has no area; 0 of none."""
    name = shield.painting.fields.boxes
    if name is None:
        return 0.0
    with torch.no_grad():
        answers = shield.shown(images.to(next(shield.parameters(), images).device, copy=True))
    boxes = torch.cat([shield.painting.held(answer)[name].double() for answer in answers])
    sides = boxes[:, 2:] - boxes[:, :2]
    return float((sides <= 0).any(1).double().mean()) if len(boxes) else 0.0


def _require_form(boxes: Tensor, size: tuple[int, int], *, is_painted: bool) -> None:
    turned, outside = _upside_down(boxes), _outside(boxes, size)
    faults = (
        (~torch.isfinite(boxes).all(1), _NO_NUMBERS),
        (_normalized(boxes, size), _NORMALIZED),
        (turned & (turned.double().mean() > _FEW), _UPSIDE_DOWN),
        (outside & outside.all(), _OUTSIDE),
        (torch.full((len(boxes),), not is_painted), _NOTHING),
    )
    for wrong, words in faults:
        if wrong.any():
            raise AnswerError(
                f"Expected a model that releases boxes as {CORNERS}, within images of "
                f"{_written(size)}; it releases {_said(boxes, wrong, words, size)}"
            )


_NO_NUMBERS = "hold numbers that are not finite. Leave such boxes out in the model."
_NORMALIZED = (
    "lie between 0 and 1: they are normalized. Multiply them by (width, height, width, height) = "
    "({1}, {0}, {1}, {0})."
)
_UPSIDE_DOWN = (
    "end before they begin (x2 < x1 or y2 < y1), as with width and height in the place of the "
    "lower right corner. Convert them: x2 = x1 + width, y2 = y1 + height."
)
_OUTSIDE = (
    "lie outside of the image. Convert them to its pixels: scale boxes as images were resized."
)
_NOTHING = "have no area in the image, or a score of 0: an audit would read nothing of them."


def _said(boxes: Tensor, wrong: Tensor, words: str, size: tuple[int, int]) -> str:
    example = [round(number, 4) for number in boxes[wrong][0].tolist()]
    return f"{example}: {int(wrong.sum())} of {len(boxes)} boxes {words.format(*size)}"


def _written(size: tuple[int, int]) -> str:
    height, width = size
    return f"height {height} and width {width}"


def _normalized(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Marks all boxes, where each lies between 0 and 1 and some have a size. Shapes: -> (n,)."""
    has_size = (boxes[:, 2:] != boxes[:, :2]).any()
    is_small = has_size & (boxes >= 0).all() & (boxes <= 1).all() & (max(size) > 1)
    return is_small.expand(len(boxes))


def _upside_down(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] < boxes[:, :2]).any(1)


def _outside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Marks boxes of which no part is in the image. Shapes: -> (n,)."""
    ends = torch.tensor(size[::-1])
    low, high = boxes[:, :2], boxes[:, 2:]
    is_beside = (torch.maximum(low, high) < 0) | (torch.minimum(low, high) > ends)
    touches = ((high == 0) | (low == ends)) & (low != high)
    return (is_beside | touches).any(1)
