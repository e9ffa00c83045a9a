"""Membership of texts in a fine-tuned language model: every score, bare and behind each preset.

A small transformer is pretrained on the docstrings of one part of Python's standard library and
fine-tuned on texts of the other part, plainly and with DP-SGD. Everything is made here; nothing is
downloaded. Shadows are fine-tuned from the same base.

    python benchmarks/language_models.py
    python benchmarks/language_models.py --texts 150 --shadows 0 --print-only
"""

import argparse
import ast
import copy
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from results import write_section
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.attacks import Game, SequenceMembership, TextExtraction
from shieldnet.attacks.positions.position_shadows import train_position_shadows
from shieldnet.attacks.positions.sequences import sequence_scores
from shieldnet.core.statistics import auc, tpr_at_fpr
from shieldnet.data.examples import Examples
from shieldnet.shield.module import Shield
from shieldnet.shield.settings import Extent
from shieldnet.training.result import Finetuned

WORDS, LENGTH, WIDTH = 1500, 32, 64
PUBLIC_SHARE = 0.6
RUN = 6  # words that no two private texts share
SHOWN = ("loss", "zlib", "Min-K%", "Min-K%++", "ratio to base", "EZ", "WBC", "loss beside base")
AGAINST_SHADOWS = ("LiRA", "RMIA")
PRESETS = ("open", "balanced", "strict")


class Block(nn.Module):
    """Attends to earlier words, then transforms each. Shapes: (n, T, width) -> the same."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys, self.values, self.mixed = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.before(x)
        parts = (layer(seen) for layer in (self.queries, self.keys, self.values))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        heard = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mixed(heard.transpose(1, 2).flatten(2))
        return x + self.fall(nn.functional.gelu(self.rise(self.after(x))))


class Transformer(nn.Module):
    """A causal language model of two layers. Shapes: (n, T) -> (n, T, words)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(WIDTH), Block(WIDTH))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, words)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.words(tokens) + self.places(places)
        return self.head(self.last(self.blocks(x)))


def docstrings() -> Iterator[list[str]]:
    """Yields the words of each file's docstrings, of Python's own library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        if "test" in path.as_posix() or "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        written = " ".join(text for node in nodes if (text := ast.get_docstring(node)))
        yield re.findall(r"\w+|[^\w\s]", written.lower())


@dataclass(frozen=True)
class Corpus:
    """Holds texts as numbers of words. Shapes: each (texts, LENGTH) int64."""

    public: Tensor
    members: Tensor
    nonmembers: Tensor
    words: int

    @classmethod
    def of(cls, texts: int, seed: int) -> "Corpus":
        """Divides files into public and private ones, and private texts at random."""
        files = [words for words in docstrings() if len(words) >= LENGTH]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(files), generator=generator).tolist()
        cut = round(PUBLIC_SHARE * len(files))
        parts = [[files[place] for place in some] for some in (order[:cut], order[cut:])]
        counts = Counter(word for words in parts[0] for word in words)
        number = {word: place for place, (word, _) in enumerate(counts.most_common(WORDS - 1), 1)}
        public, private = (
            torch.tensor(
                [
                    [number.get(word, 0) for word in words[start : start + LENGTH]]
                    for words in part
                    for start in range(0, len(words) - LENGTH + 1, LENGTH)
                ]
            ).unique(dim=0)
            for part in parts
        )
        private = private[torch.randperm(len(private), generator=generator)]
        private = private[unlike(private)][: 2 * texts]
        half = len(private) // 2
        return cls(public, private[:half], private[half:], len(number) + 1)


def unlike(texts: Tensor) -> list[int]:
    """Lists the texts that share no run of words with an earlier one: the sets are to be apart."""
    seen: set[tuple[int, ...]] = set()
    kept = []
    for place, words in enumerate(texts.tolist()):
        runs = {tuple(words[start : start + RUN]) for start in range(LENGTH - RUN + 1)}
        if not runs & seen:
            kept.append(place)
        seen |= runs
    return kept


def fitted(start: nn.Module, tokens: Tensor, epochs: float, rate: float, seed: int) -> nn.Module:
    """Trains a copy of a model on next words."""
    model = copy.deepcopy(start).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(max(1, round(epochs * len(tokens) / 32))):
        batch = tokens[torch.randint(len(tokens), (32,), generator=generator)]
        loss = nn.functional.cross_entropy(
            model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@dataclass(frozen=True)
class FromBase:
    """Fine-tunes shadows as the target was."""

    base: nn.Module
    epochs: float

    def __call__(self, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
        return fitted(self.base, data[0], self.epochs, 1e-3, seed)


def game_of(shield: Shield, corpus: Corpus, base: nn.Module) -> Game:
    """Sets the stage as an audit does."""
    sets = Examples("members", corpus.members), Examples("nonmembers", corpus.nonmembers)
    extent = Extent(corpus.words, (LENGTH,))
    return Game(shield, *sets, extent=extent, base=shield.with_model(base))


def scores_table(game: Game, shields: dict[str, Shield], shadows: int, train: FromBase) -> str:
    """Tables every score's AUC and TPR at 1% FPR, bare and behind each shield."""
    if shadows:
        game = replace(
            game,
            position_shadows=train_position_shadows(game, shields, train, shadows, engine="inline"),
        )
    names = [*SHOWN, *(AGAINST_SHADOWS if shadows else ())]
    lines = [f"| AUC (TPR at 1%) | {' | '.join(shields)} |", "|---" * (1 + len(shields)) + "|"]
    columns = {name: sequence_scores(game.behind(shield)) for name, shield in shields.items()}
    for attack in names:
        cells = []
        for scored in columns.values():
            one = scored[attack]
            rate = tpr_at_fpr(one.members, one.nonmembers, 0.01)
            found = "-" if rate is None else f"{rate.value:.3f}"
            cells.append(f"{auc(one.members, one.nonmembers).value:.3f} ({found})")
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def audits(
    corpus: Corpus,
    base: nn.Module,
    models: dict[str, tuple[object, Shield | dict[str, Shield]]],
) -> list[str]:
    """Audits each model behind its shields; says the worst attack, the bound, what is recited."""
    tier = sn.Tier("texts", (SequenceMembership(), TextExtraction()))
    lines = []
    for model_name, (finetuned, shields) in models.items():
        report = sn.audit(
            shields,
            members=corpus.members,
            nonmembers=corpus.nonmembers,
            base=base,
            finetuned=finetuned,
            tier=tier,
            progress=False,
        )
        for subject in report.subjects:
            found = {finding.name: finding for finding in subject.findings}
            worst, recited = found["membership.sequences.auc"], found["extraction.verbatim"]
            bound = "-" if worst.ceiling is None else f"{worst.ceiling:.3f}"
            lines.append(
                f"| {model_name}, {subject.name} | {worst} | {worst.source} | {bound} "
                f"| {recited} | {recited.baseline:.3f} | {found['accuracy'].value:.3f} |"
            )
    return lines


class Stopwatch:
    """Measures the CPU seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.process_time()

    def passed(self, part: str) -> None:
        now = time.process_time()
        self.seconds[part], self._begun = now - self._begun, now
        print(f"{part}: {self.seconds[part]:.0f} CPU s", flush=True)

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.0f}" for part, seconds in self.seconds.items())


def privately(base: nn.Module, members: Tensor, epsilon: float) -> Finetuned:
    """Fine-tunes the base with DP-SGD."""
    labels = nn.functional.pad(members[:, 1:], (0, 1), value=-100)
    return sn.finetune(
        base,
        (members, labels),
        sn.DPSGD(epsilon=epsilon, delta=1e-5),
        epochs=20,
        learning_rate=0.5,
        axis=-1,
        start="public",
        seed=0,
        progress=False,
    )


def measured(given: argparse.Namespace) -> str:
    """Makes the models, plays the attacks, and writes the section."""
    watch = Stopwatch()
    corpus = Corpus.of(given.texts, seed=0)
    base = fitted(Transformer(corpus.words), corpus.public, given.pretraining, 2e-3, seed=0)
    watch.passed("pretraining")
    train = FromBase(base, given.epochs)
    model = train((corpus.members, corpus.members), 1)
    watch.passed("fine-tuning")
    bare = Shield(model, axis=-1)
    shields = {name: sn.harden(model, name, axis=-1) for name in PRESETS}
    shields["top 5, one decimal"] = Shield(model, sn.TopK(5), sn.Round(1), axis=-1)
    game = game_of(bare, corpus, base)
    table = scores_table(game, {"bare": bare, **shields}, given.shadows, train)
    watch.passed(f"scores, with {given.shadows} shadows")
    models: dict[str, tuple[object, Shield | dict[str, Shield]]] = {"plain": (None, shields)}
    if given.epsilon:
        private = privately(base, corpus.members, given.epsilon)
        models[f"DP-SGD, epsilon {given.epsilon:g}"] = private, Shield(private.model, axis=-1)
        watch.passed("DP fine-tuning")
    rows = audits(corpus, base, models)
    watch.passed("audits")
    return "\n".join(
        [
            *("## Language models", ""),
            f"{len(corpus.public)} public texts, {len(corpus.members)} members and "
            f"{len(corpus.nonmembers)} nonmembers of {LENGTH} words, {corpus.words} words known.",
            *("", table, ""),
            "| model, shield | worst AUC | by | proven bound | recited | nonmembers | right |",
            *("|---" * 7 + "|", *rows, ""),
            f"CPU seconds: {watch}.",
        ]
    )


def main() -> None:
    """Reads the settings and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=600, help="Members, and as many nonmembers.")
    parser.add_argument("--shadows", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=5.0, help="Of fine-tuning.")
    parser.add_argument("--pretraining", type=float, default=1.5, help="Epochs on public text.")
    parser.add_argument("--epsilon", type=float, default=8.0, help="Of DP-SGD; 0 leaves it out.")
    parser.add_argument("--print-only", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    text = measured(given)
    if given.print_only:
        print(text)
    else:
        write_section("language models", "python benchmarks/language_models.py", text)


if __name__ == "__main__":
    main()
