"""Which tokens give this answer? One-word questions, matching pursuit, and exchanges."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shieldnet.attacks.adversary.features import Words
from shieldnet.attacks.inversion.candidates import Candidates, missed
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable

MAX_POSITIONS = 64
"""Places of a text that are searched; the others are those of the nearest own text."""
_MAX_VOCABULARY = 4096
_MAX_SWEEPS = 4
_TRIED = 8  # words asked about at one place, the best by what one-word questions tell
_RIDGE = 1e-4
_DONE = 1e-8  # mean square up to which an answer is met


@dataclass(frozen=True)
class Tokens:
    """Searches texts: rows of whole numbers, whatever order the model reads them in.

    The adversary asks about texts of one word alone. Matching pursuit explains the answer by few
    of these; another start is what the decoder expects, and another the own text with the nearest
    answer. From the best of them on, word by word, the few exchanges that fit best by the answers
    about single words are asked about, and the best is kept.

    columns: of the text; places: those that are searched. vocabulary: tokens that are tried,
    log_share: of the own texts' tokens. alone: answers about one word; step: what one word of a
    text moves, as a share.
    Shapes: vocabulary and log_share (words,), alone (words, numbers).
    """

    candidates: Candidates
    own: Examples
    columns: Tensor
    words: Words
    places: Tensor
    vocabulary: Tensor
    log_share: Tensor
    alone: Tensor
    step: float
    queries: int

    settings = (0.01, 0.1, 0.3, 1.0)
    """Weights of the log share of words against the mean square of the answer."""

    @classmethod
    def of(cls, candidates: Candidates, own: Examples, queries: int) -> "Tokens":
        """Asks the one-word questions. Errors: NotApplicable where all texts are the same."""
        columns = _of_text(own)
        text = own.inputs[:, columns]
        varying = columns[text.amin(0) < text.amax(0)]
        if not len(varying):
            raise NotApplicable("no place of the auxiliary texts varies")
        some = torch.linspace(0, len(varying) - 1, min(len(varying), MAX_POSITIONS))
        places = varying[some.long()]
        vocabulary, counts = _vocabulary(own.inputs[:, places].long())
        log_share = ((counts + 0.5) / (counts + 0.5).sum()).log()
        questions = own.inputs.mode(0).values.repeat(len(vocabulary), 1)
        questions[:, varying] = vocabulary.unsqueeze(1).to(questions.dtype)
        alone = candidates.ask(questions)
        alone = alone.where(alone.isfinite(), alone.nanmean(0).nan_to_num(0.0))
        marks = _counted(own.inputs[:, places], vocabulary)
        step = _slope(marks @ alone, candidates.about(own))
        words = Words.of(text.long())
        prior = vocabulary, log_share
        return cls(candidates, own, columns, words, places, *prior, alone, step, queries)

    def without(self, rows: Tensor) -> "Tokens":
        """Returns a search that does not start from some of the own texts."""
        kept = torch.ones(len(self.own), dtype=torch.bool).index_fill(0, rows, False)
        return replace(self, own=replace(self.own, inputs=self.own.inputs[kept], labels=None))

    @property
    def per_text(self) -> int:
        """Counts the words that are named of each text."""
        return len(self.places)

    @property
    def asked(self) -> int:
        """Counts the answers about candidates of one text, in one search."""
        exchanges = self._sweeps * len(self.places) * _TRIED
        return (exchanges + 3) * self.candidates.repeats

    @property
    def _sweeps(self) -> int:
        return max(1, min(_MAX_SWEEPS, self.queries // (_TRIED * len(self.places))))

    def apply(self, inputs: Tensor) -> Tensor:
        """Says which words occur in texts. Shapes: -> (texts, words)."""
        return self.words.apply(inputs[:, self.columns].long())

    def search(self, wanted: Tensor, expected: Tensor, setting: float) -> Tensor:
        """Returns which words occur in the texts that were found.

        Shapes: wanted (texts, numbers), expected (texts, words) of the decoder -> (texts, words).
        """
        found = self._start(wanted, expected, setting)
        for _ in range(self._sweeps):
            for place in self.places.tolist():
                left = (missed(found.answers, wanted) > _DONE).nonzero().flatten()
                if len(left):
                    better = self._exchanged(found.at(left), wanted[left], place, setting)
                    found = found.with_rows(left, better)
        return self.apply(found.texts)

    def _start(self, wanted: Tensor, expected: Tensor, setting: float) -> "_Found":
        """Returns the best start of each text: pursuit, the decoder's words, or an own text."""
        about_own = self.candidates.about(self.own)
        nearest = self.own.inputs[torch.cdist(wanted, about_own).argmin(1)]
        likely = expected.topk(min(len(self.places), expected.shape[1]), 1).indices
        likely = _filled(self.words.words[likely], len(self.places))
        starts = []
        for named in (None, self.vocabulary[self._pursued(wanted)], likely):
            texts = nearest.clone()
            if named is not None:
                texts[:, self.places] = named.to(texts.dtype)
            starts.append(_Found(texts, self.candidates.ask(texts)))
        errors = torch.stack([self._errors(start, wanted, setting) for start in starts])
        return _picked(starts, errors.argmin(0))

    def _pursued(self, wanted: Tensor) -> Tensor:
        """Explains answers by those about single words (orthogonal matching pursuit).

        Shapes: (texts, numbers) -> (texts, places), numbers of the vocabulary.
        Source: Pati, Rezaiifar, Krishnaprasad 1993.
        """
        rest, chosen = wanted, torch.zeros(len(wanted), 0, dtype=torch.int64)
        for _ in range(min(len(self.places), len(self.vocabulary))):
            fits = (rest @ self.alone.T).scatter(1, chosen, -torch.inf)
            chosen = torch.cat([chosen, fits.argmax(1, keepdim=True)], 1)
            basis = self.alone[chosen].double()
            gram = basis @ basis.transpose(1, 2)
            unit = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
            gram.diagonal(dim1=1, dim2=2).add_(_RIDGE * unit.unsqueeze(1))
            weights = torch.linalg.solve(gram, basis @ wanted.double().unsqueeze(2))
            rest = wanted - (weights.transpose(1, 2) @ basis).squeeze(1).float()
        return _filled(chosen, len(self.places))

    def _exchanged(self, found: "_Found", wanted: Tensor, place: int, setting: float) -> "_Found":
        """Tries the words that fit best at one place, and keeps the best text of each."""
        now = self.vocabulary_place(found.texts[:, place])
        rest = wanted - found.answers + self.step * self.alone[now]
        left = self.step**2 * self.alone.square().sum(1) - 2 * self.step * rest @ self.alone.T
        score = left / wanted.shape[1] - setting * self.log_share / len(self.places)
        tried = score.topk(min(_TRIED, len(self.vocabulary)), 1, largest=False).indices
        count = tried.shape[1]
        texts = found.texts.repeat_interleave(count, 0)
        texts[:, place] = self.vocabulary[tried.flatten()].to(texts.dtype)
        asked = _Found(texts, self.candidates.ask(texts))
        errors = self._errors(asked, wanted, setting).reshape(-1, count)
        before = self._errors(found, wanted, setting)
        best = errors.argmin(1)
        rows = torch.arange(len(tried)) * count + best
        return _picked([found, asked.at(rows)], (errors.amin(1) < before).long())

    def vocabulary_place(self, tokens: Tensor) -> Tensor:
        """Returns the numbers of tokens in the vocabulary, the nearest for one that is not."""
        places = torch.searchsorted(self.vocabulary, tokens.long().contiguous())
        return places.clamp_max(len(self.vocabulary) - 1)

    def _errors(self, found: "_Found", wanted: Tensor, setting: float) -> Tensor:
        words = self.vocabulary_place(found.texts[:, self.places])
        common = setting * self.log_share[words].mean(1)
        error: Tensor = missed(found.answers, wanted) - common
        return error


@dataclass(frozen=True)
class _Found:
    """Holds texts and the answers about them. Shapes: texts (n, length), answers (n, numbers)."""

    texts: Tensor
    answers: Tensor

    def at(self, rows: Tensor) -> "_Found":
        return _Found(self.texts[rows], self.answers[rows])

    def with_rows(self, rows: Tensor, other: "_Found") -> "_Found":
        texts, answers = self.texts.clone(), self.answers.clone()
        texts[rows], answers[rows] = other.texts, other.answers
        return _Found(texts, answers)


def _picked(several: list[_Found], which: Tensor) -> _Found:
    """Takes every text from one of several. Shapes: which (texts,)."""
    rows = torch.arange(len(which))
    return _Found(
        torch.stack([found.texts for found in several])[which, rows],
        torch.stack([found.answers for found in several])[which, rows],
    )


def _of_text(own: Examples) -> Tensor:
    """Returns the columns of the text: of several inputs the one with the most tokens."""
    if own.packing is None:
        return torch.arange(own.inputs.shape[1])
    parts = torch.arange(own.inputs.shape[1]).split(own.packing.sizes)
    longest: Tensor = max(parts, key=lambda columns: len(own.inputs[:, columns].unique()))
    return longest


def _vocabulary(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns tokens to try, sorted, and how often each occurs: all between the ends, if few."""
    seen, counts = tokens.unique(return_counts=True)
    low, high = int(seen[0]), int(seen[-1])
    if high - low < _MAX_VOCABULARY:
        everyone = torch.zeros(high - low + 1, dtype=torch.int64)
        everyone[seen - low] = counts
        return torch.arange(low, high + 1), everyone
    often = counts.argsort(descending=True, stable=True)[:_MAX_VOCABULARY].sort().values
    return seen[often], counts[often]


def _counted(tokens: Tensor, vocabulary: Tensor) -> Tensor:
    """Counts every word of the vocabulary. Shapes: (texts, places) -> (texts, words) float32."""
    places = torch.searchsorted(vocabulary, tokens.long().contiguous())
    places = places.clamp_max(len(vocabulary) - 1)
    known = (vocabulary[places] == tokens.long()).float()
    return torch.zeros(len(tokens), len(vocabulary)).scatter_add_(1, places, known)


def _slope(sums: Tensor, answers: Tensor) -> float:
    """Returns the share of the words' summed answers that texts' answers move by."""
    sums, answers = sums - sums.mean(0), answers - answers.mean(0)
    return float((sums * answers).sum() / sums.square().sum().clamp_min(1e-30))


def _filled(words: Tensor, count: int) -> Tensor:
    """Repeats the first words where there are too few. Shapes: (texts, n) -> (texts, count)."""
    return words[:, torch.arange(count) % words.shape[1]]
