"""Membership of embeddings: how alike an encoder makes copies of one record, and its shadows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from shieldnet.attacks.answers import defended
from shieldnet.attacks.base import Game
from shieldnet.attacks.membership.likelihood import lira, lira_offline
from shieldnet.attacks.membership.perturbations import COPIES, max_perturbed_rows, perturbed
from shieldnet.attacks.membership.scored import Scored
from shieldnet.attacks.shadow_answers import Shadows
from shieldnet.data.examples import Examples, reference_rows

_MASKED = (0.1, 0.2, 0.3, 0.5)  # shares of a record's numbers
_MAX_ANCHORS = 1000
_STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0), (2, 2), (-2, -2))  # pixels that an image is moved by
_Copies = Callable[[Tensor], Tensor]


def embedding_scores(
    game: Game, members: Examples, nonmembers: Examples, queries: int
) -> dict[str, Scored]:
    """Scores members and nonmembers by the embeddings of copies of them; no label is needed.

    An encoder that was trained to give augmented copies of its records one embedding gives them
    nearer ones: the score is the mean cosine between a record and its copies, and among these, for
    every kind of copy by itself, as the training's own is not known: noisy, masked (for tokens:
    words exchanged) and, of images, shifted and mirrored. With shadows, that of noisy copies is
    compared with theirs by LiRA; and a record is a member where its cosines to other records are
    nearer to those of shadows that were trained on it. Both stay the same if an encoder is rotated.

    Every copy changes all records in the same way. queries: answers about each, averaged.
    Source: Liu et al. 2021, EncoderMI (arXiv:2108.11023).
    """
    sets = members, nonmembers
    reference = reference_rows(game.members, game.nonmembers, game.auxiliary)
    rows = [torch.arange(min(len(part), max_perturbed_rows(part.inputs))) for part in sets]
    scores = {}
    for name, copies in _ways(reference, game.seed):
        of_members, of_nonmembers = (
            _alignment(game, part, places, copies, queries)
            for part, places in zip(sets, rows, strict=True)
        )
        count = len(copies(members.inputs[:1]))
        scores[name] = Scored(of_members, of_nonmembers, (rows[0], rows[1]), queries * (1 + count))
    if game.shadows is not None and members.name in game.shadows.scores:
        scores |= _Compared(game, game.shadows, members, nonmembers, queries).scores()
    return scores


def _ways(reference: Tensor, seed: int) -> Iterator[tuple[str, _Copies]]:
    """Names every kind of copies. Each: (rows, ...) -> (copies, rows, ...)."""
    is_whole = not reference.is_floating_point()
    if not is_whole:
        yield "alignment of noisy copies", partial(perturbed, reference=reference, seed=seed)
    name = "exchanged" if is_whole else "masked"
    yield f"alignment of {name} copies", partial(_masked, reference=reference, seed=seed)
    if reference.dim() == 4:
        yield "alignment of shifted copies", _shifted


def _masked(inputs: Tensor, reference: Tensor, seed: int) -> Tensor:
    """Replaces the same places of every record by what another record may have there.

    Real numbers become the mean, whole ones a value that is drawn from those of the reference,
    whatever their order. Shapes: (rows, ...) -> (copies, rows, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    shape = inputs.shape[1:]
    copies = []
    ordered = reference.sort(0).values
    for share in _MASKED * (COPIES // len(_MASKED)):
        hidden = torch.rand(shape, generator=generator) < share
        drawn = torch.randint(len(ordered), shape, generator=generator)
        if inputs.is_floating_point():
            other = reference.float().mean(0)
        else:
            other = ordered.gather(0, drawn.unsqueeze(0))[0]
        copies.append(torch.where(hidden, other.to(inputs.dtype), inputs))
    return torch.stack(copies)


def _shifted(images: Tensor) -> Tensor:
    """Moves images by a pixel or two, and mirrors them. Shapes: (rows, ...) -> (7, rows, ...)."""
    moved = [images.roll(step, (-2, -1)) for step in _STEPS]
    return torch.stack([*moved, images.flip(-1)])


def _alignment(
    game: Game, examples: Examples, rows: Tensor, copies: _Copies, queries: int
) -> Tensor:
    """Returns the mean cosine between a record and its copies, and among these. -> (rows,)."""
    changed = copies(examples.inputs[rows])
    asked = Examples(f"copies of {examples.name}", changed.flatten(0, 1), packing=examples.packing)
    about = game.ask(asked, queries).distribution.unflatten(0, (len(changed), -1))
    own = game.ask(examples, queries).distribution[rows]
    return _mean_cosine(torch.cat([own.unsqueeze(0), about]))


def _mean_cosine(embeddings: Tensor) -> Tensor:
    """Returns the mean cosine between different ones. Shapes: (copies, rows, d) -> (rows,)."""
    count = len(embeddings)
    unit = normalize(embeddings.double(), dim=-1)
    total = unit.sum(0).square().sum(-1) - unit.square().sum(-1).sum(0)
    return total / (count * (count - 1))


@dataclass(frozen=True)
class _Compared:
    """Compares what the target says of records with what shadows say, behind the same shield."""

    game: Game
    shadows: Shadows
    members: Examples
    nonmembers: Examples
    queries: int

    def scores(self) -> dict[str, Scored]:
        """Returns the scores that need shadows, of the records that shadows were asked about."""
        shadows, parts = self.shadows, (self.members, self.nonmembers)
        places = [shadows.places[part.name] for part in parts]
        trained_on = torch.cat([shadows.trained_on[part.name] for part in parts], 1)
        target = [
            self.game.ask(part, self.queries).distribution[rows]
            for part, rows in zip(parts, places, strict=True)
        ]
        anchors = self._anchors(sum(map(len, places)))
        sides = [anchors(torch.cat(target), None)]
        for shadow in range(shadows.count):
            about = [
                self._behind(shadows.scores[part.name][shadow], part.inputs[rows])
                for part, rows in zip(parts, places, strict=True)
            ]
            sides.append(anchors(torch.cat(about), shadow))
        missed = torch.stack([(side - sides[0]).square().mean(1) for side in sides[1:]])
        nearer = _mean_of(missed, ~trained_on) - _mean_of(missed, trained_on)
        found = {"similarity to shadows": self._scored(nearer, places, 1)}
        return found | self._of_alignment(places)

    def _anchors(self, rows: int) -> Callable[[Tensor, int | None], Tensor]:
        """Returns what takes cosines to anchors: own records, or else those that are scored."""
        owned = self.game.auxiliary
        if owned is None or "auxiliary" not in self.shadows.scores:
            some = torch.linspace(0, rows - 1, min(rows, _MAX_ANCHORS)).long()
            return lambda about, _: _cosines(about, about[some])
        places = self.shadows.places["auxiliary"][:_MAX_ANCHORS]

        def to_owned(about: Tensor, shadow: int | None) -> Tensor:
            if shadow is None:
                return _cosines(about, self.game.ask(owned, self.queries).distribution[places])
            scores = self.shadows.scores["auxiliary"][shadow][:_MAX_ANCHORS]
            return _cosines(about, self._behind(scores, owned.inputs[places]))

        return to_owned

    def _of_alignment(self, places: list[Tensor]) -> dict[str, Scored]:
        """Compares the alignment of noisy copies, where shadows were asked about these."""
        shadows, parts = self.shadows, (self.members, self.nonmembers)
        if any(part.name not in shadows.perturbed for part in parts):
            return {}
        reference = reference_rows(self.game.members, self.game.nonmembers, self.game.auxiliary)
        noisy = partial(perturbed, reference=reference, seed=self.game.seed)
        target, theirs, trained_on, rows = [], [], [], []
        for part, own in zip(parts, places, strict=True):
            count = shadows.perturbed[part.name].shape[2]
            rows.append(own[:count])
            target.append(_alignment(self.game, part, own[:count], noisy, self.queries))
            theirs.append(self._alignments(part, own[:count], noisy))
            trained_on.append(shadows.trained_on[part.name][:, :count])
        signals = torch.cat(target), torch.cat(theirs, 1), torch.cat(trained_on, 1)
        ways = {"LiRA on alignment": lira, "LiRA offline on alignment": lira_offline}
        return {
            name: self._scored(compare(*signals), rows, COPIES + 1)
            for name, compare in ways.items()
        }

    def _alignments(self, part: Examples, rows: Tensor, copies: _Copies) -> Tensor:
        """Returns the shadows' alignment of some records. Shapes: -> (shadows, rows)."""
        inputs = part.inputs[rows]
        questions = torch.cat([inputs, copies(inputs).flatten(0, 1)])
        pairs = zip(self.shadows.scores[part.name], self.shadows.perturbed[part.name], strict=True)
        return torch.stack(
            [
                _mean_cosine(
                    self._behind(
                        torch.cat([scores[: len(rows)], of_copies.flatten(0, 1)]), questions
                    ).unflatten(0, (COPIES + 1, -1))
                )
                for scores, of_copies in pairs
            ]
        )

    def _behind(self, scores: Tensor, inputs: Tensor) -> Tensor:
        return defended(self.game.shield, scores, inputs, self.queries).distribution

    def _scored(self, values: Tensor, places: list[Tensor], asked: int) -> Scored:
        count = len(places[0])
        return Scored(
            values[:count],
            values[count:],
            (places[0], places[1]),
            self.queries * asked,
            self.shadows.count,
        )


def _cosines(rows: Tensor, anchors: Tensor) -> Tensor:
    return normalize(rows.double(), dim=1) @ normalize(anchors.double(), dim=1).T


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Returns each record's mean over some shadows, or over all where these are none.

    Shapes: values and chosen (shadows, rows) -> (rows,).
    """
    count = chosen.sum(0)
    return torch.where(count > 0, (values * chosen).sum(0) / count.clamp_min(1), values.mean(0))
