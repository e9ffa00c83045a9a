"""Shields for text that is generated token by token."""

import torch
from torch import Tensor

from shieldnet.answers import ZERO_LOGIT, Kind
from shieldnet.defenses import Chain, Defense, Softmax
from shieldnet.defenses.base import Named
from shieldnet.errors import ConfigError


class LogitsProcessor:
    """Applies defenses to the next-token scores of Hugging Face's ``generate``.

    Pass it as ``model.generate(..., logits_processor=[LogitsProcessor(TopK(20), Round(2))])``:
    tokens are then drawn from the defended scores, and ``output_scores`` returns them. Each token
    is an answer with its own price.

    Where defenses name a few words and share the rest among all others, as ``TopK`` does, the
    others get no chance at all: a text is drawn from the named words. What an earlier processor
    forbade (-inf) stays forbidden. Both only leave out what was not said, so the price holds.
    NOT promised: anything of ``output_logits``, which returns what came before all processors.
    """

    def __init__(self, *defenses: Defense) -> None:
        self.chain = Chain.of(defenses, "logits")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns defended scores. Shapes: (rows, tokens) and (rows, words) -> (rows, words)."""
        forbidden = scores == -torch.inf
        with torch.no_grad():
            rows = self.chain.layout.opened(self._filled(scores, forbidden))
            answers = self.chain.defended(rows)
            if isinstance(answers, Named):
                answers = answers._replace(rest=-torch.inf).dense()
            answers = answers.masked_fill(forbidden, -torch.inf)
            # A mechanism may draw a forbidden word: any allowed one then, as nothing was said.
            nothing = (answers == -torch.inf).all(-1, keepdim=True)
            return torch.where(nothing & ~forbidden, 0.0, answers)

    def _filled(self, scores: Tensor, forbidden: Tensor) -> Tensor:
        """Gives forbidden words a score that moves the others least.

        It has no chance where defenses read probabilities, and is the mean of the allowed words
        where they read logits: centered and clipped, it takes no room.
        """
        reads_logits = bool(self.chain.stages) and not isinstance(self.chain.stages[0], Softmax)
        if not reads_logits:
            return torch.where(forbidden, scores.amax(-1, keepdim=True) + ZERO_LOGIT, scores)
        allowed = (~forbidden).sum(-1, keepdim=True)
        mean = scores.masked_fill(forbidden, 0.0).sum(-1, keepdim=True) / allowed
        return torch.where(forbidden, mean, scores)

    def __repr__(self) -> str:
        return f"LogitsProcessor({self.chain})"


def processor_of(chain: Chain) -> LogitsProcessor:
    """Makes the processor with the defenses of a shield of a language model."""
    kind: Kind = chain.layout.kind
    if kind != "logits" or chain.release != "logits":
        raise ConfigError(
            f"Expected a shield of logits that releases logits, got {kind} and {chain.release}."
        )
    return LogitsProcessor(*chain.defenses)
