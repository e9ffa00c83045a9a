"""Shields for text that is generated token by token."""

from collections.abc import Iterable

import torch
from torch import Tensor

from shieldnet.core.checks import whole
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.core.opaque_ops import refuse_recording
from shieldnet.defenses import Chain, Defense, Softmax
from shieldnet.defenses.base import Naming
from shieldnet.defenses.conversions import Center, Log
from shieldnet.defenses.named import Named
from shieldnet.outputs.layout import ZERO_LOGIT, Kind
from shieldnet.shield.settings import ShieldSettings


class LogitsProcessor:
    """Applies defenses to the next-token scores of Hugging Face's ``generate``.

    Pass it as ``model.generate(..., logits_processor=[LogitsProcessor(TopK(20), Round(2))])``:
    tokens are then drawn from the defended scores, and ``output_scores`` returns them. Each token
    is an answer with its own cost.

    forbidden: numbers of words that are never said, such as padding. You say with it that this
    list is public: it is the same for every text. These words alone leave with -inf for being
    forbidden. words: how many the model has, where that was declared; other rows are refused.

    Where defenses name a few words and share the rest among all others, as ``TopK`` does, the
    others get no chance at all, and neither does a word that is released with a chance of zero: a
    text is drawn from the named words. Both are read from what the defenses release, and cost
    nothing.
    What comes forbidden (-inf) by the model or by an earlier processor, and is not on the list, is
    taken for the least likely of all words and forgotten: which words these are may depend on the
    scores, and then it is an answer that no cost counts. Where defenses round or cut, such a
    word has no chance; where they draw at random, it may be drawn.
    NOT promised: anything of ``output_logits``, which returns what came before all processors.
    """

    def __init__(
        self, *defenses: Defense, forbidden: Iterable[int] = (), words: int | None = None
    ) -> None:
        self.chain = Chain.of(defenses, "logits")
        self.words = None if words is None else whole("words", words, low=2)
        if isinstance(forbidden, Tensor) and forbidden.dtype == torch.bool:
            forbidden = forbidden.nonzero().flatten()
        listed = forbidden.tolist() if isinstance(forbidden, Tensor) else forbidden
        if isinstance(listed, str | int | float) or not isinstance(listed, Iterable):
            raise ConfigError(f"Expected forbidden as numbers of words, got {forbidden!r}.")
        self.forbidden = tuple(sorted({whole("forbidden", word, low=0) for word in listed}))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns defended scores. Shapes: (rows, tokens) and (rows, words) -> (rows, words).

        Errors: AnswerError for a forbidden word that the model does not have, or where all are.
        """
        refuse_recording("a logits processor")
        public = self._mask(scores)
        with torch.no_grad():
            rows = self.chain.layout.opened(self._filled(scores, public))
            answers = self.chain.defended(rows)
            if isinstance(answers, Named):
                answers = answers._replace(rest=-torch.inf).dense()
            # A zero among the named words looks like one among the others: who is named without a
            # chance was not counted.
            if self.chain.stages and isinstance(self.chain.stages[-1], Log):
                answers = answers.masked_fill(answers <= ZERO_LOGIT, -torch.inf)
            answers = answers.masked_fill(public, -torch.inf)
            # A mechanism may draw a forbidden word: any allowed one then, as nothing was said.
            nothing = (answers == -torch.inf).all(-1, keepdim=True)
            return torch.where(nothing & ~public, 0.0, answers)

    def _mask(self, scores: Tensor) -> Tensor:
        """Marks the words that are publicly forbidden. Shapes: -> (words,) bool."""
        words = scores.shape[-1]
        if self.words not in (None, words):
            raise AnswerError(
                f"Expected {self.words} words, the extent that was declared, "
                f"got {words}; nothing was released."
            )
        if self.forbidden and self.forbidden[-1] >= words:
            raise AnswerError(
                f"Expected forbidden words below {words}, which the model has, got "
                f"{self.forbidden[-1]}."
            )
        if len(self.forbidden) == words:
            raise AnswerError(f"All {words} words are forbidden: allow at least one.")
        mask = torch.zeros(words, dtype=torch.bool, device=scores.device)
        mask[list(self.forbidden)] = True
        return mask

    def _filled(self, scores: Tensor, public: Tensor) -> Tensor:
        """Gives forbidden words a score that moves the others least.

        It has no chance where defenses read probabilities. Where they center and clip logits, it is
        the mean of the allowed words for the public ones, which takes no room and leaves with -inf,
        and the least of them for those that are forgotten.
        """
        forgotten = (scores == -torch.inf) & ~public
        forbidden = public | forgotten
        if not self._clips_logits():
            best = scores.masked_fill(forbidden, -torch.inf).amax(-1, keepdim=True)
            return torch.where(forbidden, best.nan_to_num(neginf=0.0) + ZERO_LOGIT, scores)
        allowed = (~forbidden).sum(-1, keepdim=True)
        mean = scores.masked_fill(forbidden, 0.0).sum(-1, keepdim=True) / allowed.clamp_min(1)
        least = scores.masked_fill(forbidden, torch.inf).amin(-1, keepdim=True)
        least = torch.where(allowed > 0, least, 0.0)
        return torch.where(forgotten, least, torch.where(public, mean, scores))

    def _clips_logits(self) -> bool:
        for stage in self.chain.stages:
            if isinstance(stage, Softmax | Naming | Center):
                return isinstance(stage, Center)
        return False

    def __repr__(self) -> str:
        listed = f"; forbidden: {len(self.forbidden)} words" if self.forbidden else ""
        return f"LogitsProcessor({self.chain}{listed})"


def processor_of(settings: ShieldSettings, forbidden: Iterable[int] = ()) -> LogitsProcessor:
    """Makes the processor with the defenses of a shield of a language model."""
    chain, extent = settings.chain, settings.extent
    kind: Kind = chain.layout.kind
    if kind != "logits" or chain.release != "logits":
        raise ConfigError(
            f"Expected a shield of logits that releases logits, got {kind} and {chain.release}."
        )
    words = None if extent is None else extent.classes
    return LogitsProcessor(*chain.defenses, forbidden=forbidden, words=words)
