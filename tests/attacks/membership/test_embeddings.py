"""Records that trained an encoder are found by its embeddings alone; others are not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import shieldnet as sn
from shieldnet.attacks import Averaging, Game, Membership
from shieldnet.attacks.membership.embeddings import _masked, _mean_cosine, embedding_scores
from shieldnet.attacks.membership.shadows import ShadowPlan, train_shadows
from shieldnet.data.examples import Examples


def contrastive(data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """Trains an encoder to give two noisy copies of a record one embedding, as SimCLR does."""
    inputs, _ = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 16))
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(120):
            first, second = (
                normalize(net(inputs + 0.5 * torch.randn_like(inputs)), dim=1) for _ in range(2)
            )
            optimizer.zero_grad()
            cross_entropy(first @ second.T / 0.1, torch.arange(len(inputs))).backward()
            optimizer.step()
    return net.eval()


def sets_of(seed: int, rows: int = 60) -> dict[str, Examples]:
    inputs = torch.randn(3 * rows, 12, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(rows, dtype=torch.int64)
    names = ("members", "nonmembers", "auxiliary")
    parts = zip(names, inputs.split(rows), strict=True)
    return {name: Examples(name, part, labels) for name, part in parts}


@pytest.fixture(scope="module")
def game() -> Game:
    sets = sets_of(0)
    shield = sn.Shield(contrastive((sets["members"].inputs, Tensor()), 1), outputs="embeddings")
    shadows = train_shadows(ShadowPlan(contrastive, 4, shield, **sets), engine="inline")
    return Game(shield, **sets, shadows=shadows)


def found(game: Game) -> dict[str, sn.Finding]:
    return {finding.name: finding for finding in Membership()(game).findings}


def test_records_of_a_contrastive_training_are_found_with_and_without_shadows(game) -> None:
    findings = found(game)
    assert findings["membership.alignment of noisy copies.auc"].low > 0.5
    assert findings["membership.LiRA on alignment.auc"].low > 0.5
    assert findings["membership.similarity to shadows.auc"].value > 0.5
    assert findings["membership.auc"].low > 0.5
    assert findings["membership.LiRA on alignment.auc"].threat.shadows == 4


def test_behind_noise_many_answers_are_averaged(game) -> None:
    noisy = sn.Shield(
        game.shield.model, sn.ClipNorm(5.0), sn.GaussianNoise(0.5), outputs="embeddings"
    )
    behind = replace(game, shield=noisy).without_shadows()
    outcome = Averaging(queries=(4,))(behind)
    (finding,) = (one for one in outcome.findings if one.name == "membership.averaged.4")
    assert finding.threat.queries == 4 * 17
    assert finding.value > 0.5


def test_no_label_is_needed(game) -> None:
    bare = replace(
        game,
        **{
            name: replace(getattr(game, name), labels=None)
            for name in ("members", "nonmembers", "auxiliary")
        },
    ).without_shadows()
    assert found(bare)["membership.auc"].low > 0.5


def test_rotating_the_encoder_changes_no_score(game) -> None:
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]

    class Turned(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return game.shield.model(rows) @ turn

    other = replace(game, shield=game.shield.with_model(Turned()))
    pair = [embedding_scores(one, one.members, one.nonmembers, 1) for one in (game, other)]
    for name, scored in pair[0].items():
        assert torch.allclose(scored.members, pair[1][name].members, atol=1e-3), name


def test_exchanging_the_sets_turns_every_auc_around(game) -> None:
    members = replace(game.members, name="nonmembers")
    nonmembers = replace(game.nonmembers, name="members")
    swapped = replace(game.without_shadows(), members=nonmembers, nonmembers=members)
    for owned in (game.auxiliary, None):
        before = found(replace(game.without_shadows(), auxiliary=owned))
        after = found(replace(swapped, auxiliary=owned))
        for name, finding in before.items():
            if name.endswith("copies.auc"):
                assert after[name].value == pytest.approx(1 - finding.value, abs=1e-3)


def test_an_encoder_that_saw_neither_set_is_at_chance(game) -> None:
    alarms = 0
    for seed in range(1, 5):
        sets = sets_of(seed)
        alarms += found(Game(game.shield, **sets))["membership.auc"].low > 0.5
    assert alarms <= 1


def test_a_constant_encoder_tells_nothing(game) -> None:
    class Same(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return torch.ones(len(rows), 4)

    still = Game(sn.Shield(Same(), outputs="embeddings"), **sets_of(0))
    assert found(still)["membership.auc"].value == 0.5


def test_tokens_are_exchanged_and_images_moved_in_the_same_way_for_every_record() -> None:
    tokens = torch.randint(0, 50, (30, 6), generator=torch.Generator().manual_seed(0))
    copies = _masked(tokens[:5], tokens, 0)
    assert copies.dtype == tokens.dtype
    assert set(copies.flatten().tolist()) <= set(range(120))
    changed = (copies != tokens[:5]).any(1)
    assert 0 < float(changed.double().mean()) < 0.8
    assert torch.equal(copies, _masked(tokens[:5], tokens.flip(0), 0))
    images = torch.randn(90, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    sets = zip(("members", "nonmembers", "auxiliary"), images.split(30), strict=True)
    shield = sn.Shield(nn.Flatten(), outputs="embeddings")
    names = found(Game(shield, **{name: Examples(name, part) for name, part in sets}))
    assert "membership.alignment of shifted copies.auc" in names


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    embeddings = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    cosine = nn.functional.cosine_similarity
    pairs = [cosine(embeddings[a], embeddings[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert torch.allclose(_mean_cosine(embeddings), torch.stack(pairs).mean(0))
