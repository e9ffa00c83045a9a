"""What a shield releases of many rows, averaged over queries, and what its model would say."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shieldnet.defenses.named import dense
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield

_BATCH = 1024
_NUMBERS = 2**24  # of the inputs that a model gets at once: large images come in fewer


@dataclass(frozen=True)
class Answers:
    """Holds what the shield released about some rows, averaged over the queries.

    Shapes: distribution (rows, classes) that sums to 1, or the numbers themselves of values and
    embeddings; logits (rows, classes) where the shield releases scores that say more than their
    softmax, else None; mean_log, the mean of log p, where several answers were averaged.
    """

    distribution: Tensor
    logits: Tensor | None = None
    mean_log: Tensor | None = None

    def first(self, rows: int) -> "Answers":
        """Keeps the first rows."""
        return self.at(torch.arange(min(rows, len(self.distribution))))

    def at(self, rows: Tensor) -> "Answers":
        """Keeps the rows of these numbers."""
        parts = (self.distribution, self.logits, self.mean_log)
        return Answers(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]  # the distribution is never None


class Behind(nn.Module):
    """The model behind a shield: its true scores as rows, with their graph.

    The model gets a copy of the inputs, which it may write into.
    """

    def __init__(self, shield: Shield) -> None:
        super().__init__()
        self.shield = shield

    def forward(self, inputs: Tensor) -> Tensor:
        """Shapes: inputs -> (rows, classes) logits, or probabilities where the model gives them."""
        scores = self.shield.answer_in(self.shield.model(inputs.clone()))
        return one_row_each(self.shield.chain.layout.opened(scores))


def one_row_each(rows: Tensor) -> Tensor:
    """Drops positions of size one; a number a row becomes a column.

    Errors: NotApplicable for several positions, which are several rows of numbers.

    Shapes: (n, 1, ..., 1, classes) -> (n, classes), (n,) -> (n, 1).
    """
    if (places := math.prod(rows.shape[1:-1])) > 1:
        raise NotApplicable(
            f"it reads one row of numbers an answer, the model answers at {places} positions"
        )
    return rows.reshape(len(rows), 1 if rows.dim() == 1 else rows.shape[-1])


def inputs_at_once(inputs: Tensor) -> int:
    """Returns how many of these rows a model gets at once."""
    return max(1, min(_BATCH, _NUMBERS // max(1, inputs[:1].numel())))


def in_batches(module: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Runs a module over all rows, on its own device, without a graph.

    The module gets copies of the rows, which it may write into.
    Shapes: inputs (rows, ...) -> what the module gives, on the CPU.
    """
    parameters = getattr(module, "parameters", None)
    first = next(parameters(), None) if parameters else None
    device = inputs.device if first is None else first.device
    with torch.no_grad():
        parts = inputs.split(inputs_at_once(inputs))
        answers = (module(part.to(device, copy=True)) for part in parts)
        pick = module.answer_in if isinstance(module, Shield) else _same
        return torch.cat([pick(answer).cpu() for answer in answers])


def _same(answers: Tensor) -> Tensor:
    return answers


def vector_views(numbers: Tensor) -> dict[str, Tensor]:
    """Lists the readings of released values or embeddings. Shapes: (n, d) -> each (n, d)."""
    length = numbers.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    views = {"numbers": numbers}
    return views if numbers.shape[-1] == 1 else {**views, "direction": numbers / length}


def defended(shield: Shield, scores: Tensor, inputs: Tensor, queries: int = 1) -> Answers:
    """Passes true scores, of this model or of another, through the shield's defenses.

    inputs: what the scores are about, for noise that is keyed on them.
    Shapes: scores (rows, classes).
    """
    chain = shield.chain
    places = 1 if chain.layout.axis is None else max(1, abs(chain.layout.axis))
    rows = scores.reshape(len(scores), *[1] * (places - 1), scores.shape[-1])

    def ask() -> Tensor:
        answers = dense(chain.defended(rows, (inputs,)))
        return chain.layout.closed(answers, rows.shape, chain.release)

    with torch.no_grad():
        return _averaged(shield, ask, queries, scores.shape[-1])


def asked(shield: Shield, inputs: Tensor, queries: int) -> Answers:
    """Asks a shield ``queries`` times about each row and averages the answers."""
    return _averaged(shield, lambda: in_batches(shield, inputs), queries)


def _averaged(
    shield: Shield, ask: Callable[[], Tensor], queries: int, classes: int | None = None
) -> Answers:
    """Asks ``queries`` times and takes the mean of every part of the answers."""
    chain = shield.chain
    is_vector = chain.layout.kind in ("values", "embeddings")
    sums: list[Tensor] = []
    for _ in range(queries):
        answers = ask()
        if is_vector:
            parts = [one_row_each(chain.rows(answers)).float()]
        else:
            stated = one_row_each(chain.distribution(answers, classes or shield.classes or 0))
            parts = [stated]
            if queries > 1:
                parts.append(stated.clamp_min(1e-30).log())
            if chain.releases_scores:
                parts.append(one_row_each(chain.rows(answers)))
        sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else parts
    means = [total / queries for total in sums]
    return Answers(
        means[0],
        logits=means[-1] if chain.releases_scores else None,
        mean_log=means[1] if queries > 1 and not is_vector else None,
    )
