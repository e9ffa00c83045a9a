"""Shields for text that is generated token by token."""

import torch
from torch import Tensor

from shieldnet.answers import ZERO_LOGIT, Kind
from shieldnet.defenses import Chain, Defense
from shieldnet.errors import ConfigError


class LogitsProcessor:
    """Applies defenses to the next-token scores of Hugging Face's ``generate``.

    Pass it as ``model.generate(..., logits_processor=[LogitsProcessor(TopK(20), Round(2))])``:
    tokens are then drawn from the defended distribution, and ``output_scores`` returns it. Each
    token is an answer with its own price.
    Tokens that an earlier processor forbade (-inf) keep a chance of 0 where the defenses keep 0.
    NOT promised: anything of ``output_logits``, which returns what came before all processors.
    """

    def __init__(self, *defenses: Defense) -> None:
        self.chain = Chain.of(defenses, "logits")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns defended scores. Shapes: (rows, tokens) and (rows, words) -> (rows, words)."""
        forbidden = scores == -torch.inf
        highest = scores.amax(-1, keepdim=True)
        with torch.no_grad():
            answers = self.chain(torch.where(forbidden, highest + ZERO_LOGIT, scores))
        return answers.to(torch.promote_types(scores.dtype, torch.float32))

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
