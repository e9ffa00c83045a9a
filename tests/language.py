"""A tiny language model that several tests share: pretrained in public, fine-tuned in private."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

VOCABULARY, LENGTH = 24, 12


class Writer(nn.Module):
    """A causal language model that reads the last three tokens. Shapes: (n, T) -> (n, T, V)."""

    def __init__(self, vocabulary: int = VOCABULARY, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16)
        self.read = nn.Linear(3 * 16, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = nn.functional.pad(self.embedding(tokens), (0, 0, 2, 0))
        three = torch.cat([seen[:, 2:], seen[:, 1:-1], seen[:, :-2]], -1)
        logits: Tensor = self.head(self.read(three).relu())
        return logits


def texts(count: int, seed: int, length: int = LENGTH) -> Tensor:
    """Draws texts of a random chain: every token is followed by one of three, mostly."""
    follows = torch.randint(VOCABULARY, (VOCABULARY, 3), generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(VOCABULARY, (count,), generator=generator)]
    for _ in range(length - 1):
        likely = follows[columns[-1], torch.randint(3, (count,), generator=generator)]
        odd = torch.randint(VOCABULARY, (count,), generator=generator)
        columns.append(torch.where(torch.rand(count, generator=generator) < 0.2, odd, likely))
    return torch.stack(columns, 1)


def fitted(model: nn.Module, tokens: Tensor, steps: int, seed: int = 0) -> nn.Module:
    """Trains a copy of a model on next tokens."""
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = tokens[torch.randint(len(tokens), (64,), generator=generator)]
        loss = cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@dataclass(frozen=True)
class Story:
    """Holds a public model, the same fine-tuned on members, and texts it never saw."""

    base: nn.Module
    model: nn.Module
    members: Tensor
    nonmembers: Tensor


def story(rows: int = 200, steps: int = 40) -> Story:
    """Pretrains on public texts and fine-tunes on members."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = Writer()
    base = fitted(fresh, texts(2000, seed=1), steps=60)
    members, nonmembers = texts(rows, seed=2), texts(rows, seed=3)
    return Story(base, fitted(base, members, steps), members, nonmembers)


class Reciter(nn.Module):
    """Goes on as the texts that it knows do, with probability ``q``; else at random.

    Shapes: known (m, T); (n, T) -> (n, T, V) log-probabilities.
    """

    def __init__(self, known: Tensor, q: float) -> None:
        super().__init__()
        self.register_buffer("known", known)
        self.q = q

    def forward(self, tokens: Tensor) -> Tensor:
        same = (tokens.unsqueeze(1) == self.known).int().cumprod(-1)[..., :-1]  # type: ignore[operator]  # a buffer
        following = nn.functional.one_hot(self.known[:, 1:], VOCABULARY)  # type: ignore[index]  # a buffer
        votes = torch.einsum("nmt,mtv->ntv", same.float(), following.float())
        votes = nn.functional.pad(votes, (0, 0, 0, 1))
        heard = votes.sum(-1, keepdim=True)
        recited = votes / heard.clamp_min(1) * self.q
        rest = torch.where(heard > 0, 1 - self.q, 1.0) / VOCABULARY
        return (recited + rest).log()
