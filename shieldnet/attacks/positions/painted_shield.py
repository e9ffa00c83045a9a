"""A detector's shield whose answers are painted, so that attacks on maps read them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from shieldnet.attacks.positions.box_numbers import Painted
from shieldnet.attacks.positions.painting import Painting
from shieldnet.defenses import Defense
from shieldnet.findings.finding import NotApplicable
from shieldnet.privacy.certificate import Certificate
from shieldnet.privacy.cost import PrivacyCost
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent


class PaintedShield(Shield):
    """A detector's shield whose answers are painted: a distribution for each cell of a map.

    shown: the shield itself, which answers, and whose cost is stated.
    """

    def __init__(self, shown: Shield, painting: Painting) -> None:
        super().__init__(shown.model, shown.settings)
        self.shown = shown
        self.painting = painting
        # How attacks read what was painted.
        self.chain = Shield(nn.Identity(), outputs="probabilities", axis=-1).chain

    def forward(self, *args: Any, **kwargs: Any) -> Painted:
        """Returns one answer as maps and as numbers."""
        images = self.shown(*args, **kwargs)
        return Painted(self.painting.answers(images, self.shown), self.painting.numbers(images))

    def answer_in(self, released: Any) -> Tensor:
        """Returns what was painted. Errors: NotApplicable for the boxes themselves."""
        if not isinstance(released, Painted):
            raise NotApplicable("how many boxes a detector gives has no gradient")
        return released.maps

    def bare(self, release: Any = None) -> "PaintedShield":
        """Returns the same without defenses."""
        return PaintedShield(without_defenses(self.shown), self.painting)

    def with_model(self, model: nn.Module) -> "PaintedShield":
        """Returns the same around another model."""
        return PaintedShield(self.shown.with_model(model), self.painting)

    def cost(self, classes: Any = None, *, positions: Any = None) -> PrivacyCost:
        """Returns what the shield itself states."""
        return self.shown.cost(classes, positions=positions)

    def certificate(
        self, classes: Any = None, *, positions: Any = None, queries: int = 1
    ) -> Certificate:
        """Returns what the shield itself states."""
        return self.shown.certificate(classes, positions=positions, queries=queries)

    @property
    def extent(self) -> Extent:
        """Returns the extent of a map."""
        return Extent(self.painting.classes, self.painting.positions)

    def _fingerprinted(self) -> tuple[Any, ...]:
        return (self.shown, self.painting)


def without_defenses(shield: Shield) -> Shield:
    """Returns a shield that releases the same fields as they are."""
    also: dict[str, Sequence[Defense]] = dict.fromkeys(shield.others, ())
    open_ = replace(shield.settings, defenses=(), release=None, also=also, extent=None)
    return Shield(shield.model, open_)
