"""Premises about the starting model: what it already knew about the records."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.func import functional_call

from shieldnet.core.errors import ConfigError, DataError
from shieldnet.data.hashing import is_named_by, unhashed, weights_hash
from shieldnet.privacy.guarantee import COMPOSED, KERNELS, ONE_MODEL, PUBLIC, UNSTATED, Guarantee
from shieldnet.training.ids import naming_ids
from shieldnet.training.losses import Loss
from shieldnet.training.private.capture import NotCaptured, map_records
from shieldnet.training.records import Records

_SIGNIFICANT = 1e-3
_MIN_ROWS = 100  # of either set: fewer rows rarely reveal a start that knows the records


@dataclass(frozen=True)
class Premise:
    """Holds what a guarantee assumes about the model that the training starts from.

    known: ``public``, the guarantee of the starting model, or None if nothing is stated. start:
    hash of the starting model. opaque: attributes whose content the hash does not cover.
    """

    known: str | Guarantee | None
    start: str
    opaque: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, known: object) -> "Premise":
        """Validates ``start=`` of ``finetune``.

        Errors: ConfigError for anything but "public", a Guarantee of this model, or None.
        """
        start = weights_hash(model)
        if isinstance(known, Guarantee):
            if not is_named_by(model, known.weights):
                raise ConfigError(
                    "The guarantee in start= belongs to another model, so it says nothing about "
                    "this one. Pass the model that finetune returned with it."
                )
        elif known is not None and not (isinstance(known, str) and known == "public"):
            raise ConfigError(
                "Expected start='public' (a fresh or public model that never saw the records), "
                f"start=Guarantee (of the model that is passed), or None; got {known!r}."
            )
        return cls(known, start, unhashed(model))

    def stated(self, claimed: Guarantee, run: str) -> Guarantee:
        """Returns the guarantee with its premises."""
        if isinstance(self.known, Guarantee):
            scope, premises = self.known.scope, (COMPOSED, *self.known.premises)
            before = self.known
            caveats = tuple(dict.fromkeys((*claimed.caveats, *self.known.caveats)))
            claimed = replace(claimed, caveats=caveats, seal=self.known.seal)
        else:
            scope = "steps" if self.known is None else "weights"
            premises = (UNSTATED if self.known is None else PUBLIC,)
            before = None
        hidden = [f"the content of {name} does not depend on the records" for name in self.opaque]
        own = claimed.premises
        all_premises = tuple(dict.fromkeys((*premises, *own, KERNELS, ONE_MODEL, *hidden)))
        return replace(
            claimed,
            run=run,
            start=self.start,
            premises=all_premises,
            scope=scope,
            before=() if before is None else (before,),
        )

    def check(self, better: float, chance: float, rows: int) -> str:
        """Returns a statement on a start that was compared on records and held-out rows.

        better: probability that the start fits a record better than a held-out row. chance: p value
        of that comparison if it saw neither set. rows: size of the smaller set.
        Errors: ConfigError for a public start that knows the records.
        """
        measured = (
            f"the start fits a record better than a held-out row {better:.0%} of the time "
            f"(p = {chance:.1g})"
        )
        if chance >= _SIGNIFICANT and rows < _MIN_ROWS:
            return f"Too few rows ({rows}) to tell whether the start knows the records: {measured}."
        if chance >= _SIGNIFICANT:
            return f"No evidence that the start knows the records: {measured}."
        if self.known == "public":
            raise ConfigError(
                f"start='public' is not true: {measured}, so it already knows the records, and no "
                "guarantee of the weights would hold. Start from a fresh or public model, or pass "
                "start=Guarantee, the one that the model was trained under."
            )
        if isinstance(self.known, Guarantee) and self.known.scope == "weights":
            return f"The start knows the records, as its guarantee allows: {measured}."
        return f"The start knows the records: {measured}. The guarantee does not cover the weights."


def fit(model: nn.Module, records: Records, heldout: Records, loss: Loss) -> tuple[float, float]:
    """Compares a model's losses on records and on held-out rows of the same kind.

    Returns the probability that a record's loss is the smaller one, and the p value of a one-sided
    rank test (Mann-Whitney) under the hypothesis that the model saw neither set.
    """
    from scipy.stats import mannwhitneyu

    ours, theirs = _losses(model, (records, heldout), loss)
    test = mannwhitneyu(ours, theirs, alternative="less")
    return 1 - float(test.statistic) / (len(ours) * len(theirs)), float(test.pvalue)


def _losses(model: nn.Module, sets: Sequence[Records], loss: Loss) -> list[Tensor]:
    """Returns the loss of every row, computed by a graph: the model's own code sees no record."""
    traced = copy.deepcopy(model).eval()
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def of_one(held: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(traced, held, (x.unsqueeze(0),)), y.unsqueeze(0)).reshape(())

    try:
        results = []
        for rows in sets:
            with naming_ids(model, rows):
                results.append(map_records(of_one, held, rows.inputs, rows.labels).double())
    except NotCaptured as reason:
        raise ConfigError(f"The start cannot be compared on heldout rows: {reason}.") from reason
    if not all(values.isfinite().all() for values in results):
        raise DataError("The start's losses are not finite: they cannot be compared.")
    return results
