"""How large a shield's answers were so far, and whether they stay within a declared extent."""

from shieldnet.core.checks import whole
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.core.opaque_ops import is_exporting
from shieldnet.outputs.nested import Path, written
from shieldnet.privacy.cost import PrivacyCost, rounded_up
from shieldnet.shield.settings import Extent, ShieldSettings, named_by

Sizes = tuple[int, tuple[int, ...]]
"""The classes of a row and the positions of an answer."""


class SeenExtent:
    """Keeps the greatest extent of a shield's answers, or holds them to the declared one.

    sizes: of the answer; fields: of the other fields, by path. Both are declared from the start
    where the settings have an extent, and never change then.
    Errors: AnswerError for an answer of another extent; ConfigError where none is known.
    """

    def __init__(self, settings: ShieldSettings) -> None:
        self._settings = settings
        self.answered = False
        self.any_number = False
        self.sizes: Sizes | None = None
        self.fields: dict[str, Sizes] = {}
        self._answered_fields: set[str] = set()
        if (declared := settings.extent) is not None:
            self.sizes = (declared.classes, declared.positions)
            parts = declared.fields.items()
            self.fields = {path: (part.classes, part.positions) for path, part in parts if part}

    def see(self, sizes: Sizes) -> None:
        """Takes in the sizes of an answer, or refuses them."""
        greatest = self._at_most(self.sizes, sizes)
        if not is_exporting():  # there a graph is drawn, and nothing is answered
            self.sizes, self.answered = greatest, True

    def see_any_number(self) -> None:
        """Takes in an answer of as many rows as the model likes, as a detector's, or refuses it."""
        if self._settings.extent is not None:
            raise AnswerError(
                f"Expected {self._settings.extent} at most, as the extent says whose privacy cost "
                "was agreed; a list of dicts, as a detector's, has any number of boxes, for an "
                "infinite cost. Nothing was released. Leave extent= out."
            )
        if not is_exporting():
            self.any_number = True

    def is_first(self, path: Path) -> bool:
        """Says whether no answer had another field so far."""
        return written(path) not in self._answered_fields

    def see_field(self, path: Path, sizes: Sizes) -> None:
        """Takes in the sizes of another field of an answer, or refuses them."""
        name = written(path)
        greatest = self._at_most(self.fields.get(name), sizes)
        if not is_exporting():
            self._answered_fields.add(name)
            self.fields[name] = greatest

    def see_as_it_is(self, path: Path) -> None:
        """Takes in a field that is released as it is, whatever its size, or refuses it."""
        name = written(path)
        if self._settings.extent is not None and name not in self.fields:
            raise AnswerError(
                f"Expected no field {name}, as the extent says whose privacy cost was agreed; "
                "nothing was released. Name it: Extent(classes, fields={...: Extent(1)})."
            )
        if not is_exporting():
            self.fields[name] = (1, ())

    def known(self) -> Extent | None:
        """Returns the declared extent of an answer, or the greatest so far; None before any."""
        if self.sizes is None or self._settings.extent is not None:
            return self._settings.extent
        fields: dict[str, Extent | None] = {
            path: Extent(*sizes) for path, sizes in self.fields.items()
        }
        if self.answered:  # what the form of an answer does not have costs nothing
            others = self._settings.others
            there = {named_by(tuple(path.split(".")), others) for path in fields}
            fields |= {name: None for name in others if name not in there}
        return Extent(*self.sizes, fields, any_number=self.any_number)

    def extent(self, classes: int | None, positions: tuple[int, ...] | None = None) -> Extent:
        """Returns the extent that is known, or else the one that is given.

        positions: to be counted in place of those that are known.
        """
        known = self.known()
        classes = None if classes is None else whole("classes", classes, low=self._least_classes)
        if positions is not None:
            positions = tuple(whole("positions", size, low=1) for size in positions)
        if known is None:
            return Extent(*self._given(classes, positions), any_number=self.any_number)
        if classes not in (None, known.classes):
            raise ConfigError(f"The shield has answered {known.classes} classes, not {classes}.")
        places = known.positions if positions is None else positions
        return Extent(known.classes, places, known.fields, known.any_number)

    def cost(self) -> str:
        """Says what an answer costs, for those who print a shield."""
        extent = self.known()
        if extent is None:
            return "known with the first answer"
        cost: PrivacyCost = self._settings.cost(extent)
        return f"{rounded_up(cost.bits)} bits, mu {rounded_up(cost.mu)} an answer"

    @property
    def _least_classes(self) -> int:
        return 1 if self._settings.chain.layout.kind in ("values", "embeddings") else 2

    def _given(self, classes: int | None, positions: tuple[int, ...] | None) -> Sizes:
        if classes is None:
            raise ConfigError(
                "The number of classes is not known before the first answer. "
                "Answer a batch first, or give it: shield.certificate(classes=10)."
            )
        if positions is None and self._settings.chain.layout.has_positions:
            raise ConfigError(
                "How many positions an answer has is not known before the first answer. "
                "Answer a batch first, or give them: positions=(height, width), or "
                "positions=() for one number or row an answer."
            )
        return classes, positions or ()

    def _at_most(self, known: Sizes | None, sizes: Sizes) -> Sizes:
        """Returns the greatest extent along every axis, or refuses what is above the declared."""
        if self._settings.extent is None:
            return _largest(known, sizes)
        if known is not None and _fits(sizes, known):
            return known
        if known is None:
            allowed = "nothing of that name"
        elif known[0] != sizes[0]:
            allowed = f"exactly {Extent(known[0])}"
        else:
            allowed = f"{Extent(*known)} at most"
        raise AnswerError(
            f"Expected {allowed}, as the extent says whose privacy cost was agreed, got "
            f"{Extent(*sizes)}; nothing was released."
        )


def _fits(sizes: Sizes, limit: Sizes) -> bool:
    same = sizes[0] == limit[0] and len(sizes[1]) == len(limit[1])
    return same and all(size <= most for size, most in zip(sizes[1], limit[1], strict=True))


def _largest(known: Sizes | None, sizes: Sizes) -> Sizes:
    """Returns the greatest extent along every axis: no answer so far costs more than that."""
    if known is None or known == sizes:
        return sizes
    if known[0] != sizes[0] or len(known[1]) != len(sizes[1]):
        raise AnswerError(
            f"Expected {Extent(*known)} as in the first answer, got {Extent(*sizes)}; "
            "make one Shield for each model."
        )
    return known[0], tuple(map(max, known[1], sizes[1]))
