import pytest
import torch
from scipy.stats import pearsonr
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Game, Inversion
from shieldnet.attacks.adversary.decoders import KernelRidge, Ridge
from shieldnet.attacks.answers import Answers
from shieldnet.checks import Attribution
from shieldnet.checks.attribution import jacobian_rows
from shieldnet.core.randomness import replayed_noise
from shieldnet.core.statistics import rank_correlation
from shieldnet.data.examples import Examples
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield

DOZEN = (
    (),
    (sn.Round(4),),
    (sn.Round(3),),
    (sn.Round(2),),
    (sn.Round(1),),
    (sn.TopK(5),),
    (sn.TopK(3),),
    (sn.TopK(2),),
    (sn.TopK(3), sn.Round(1)),
    (sn.Confidence(4),),
    (sn.Label(),),
    (sn.ClipNorm(30.0), sn.GaussianNoise(1.0)),
    (sn.ClipNorm(30.0), sn.GaussianNoise(3.0)),
)


def test_the_leak_map_ranks_what_the_best_decoder_recovers(make_game) -> None:
    game = make_game()
    recovered = Inversion(decoders=(KernelRidge(),))(game).features["recovered"].flatten()
    features = Attribution()(game).features
    varies = features["null map"].flatten() > 1e-3 * features["null map"].max()
    agreement = rank_correlation(recovered[varies], features["leak map"].flatten()[varies])
    null = rank_correlation(recovered[varies], features["null map"].flatten()[varies])
    assert agreement > 0.8
    assert agreement > null


def test_the_estimates_follow_the_measured_leakage_over_a_dozen_shields(make_game) -> None:
    estimated, measured = [], []
    with replayed_noise(0):
        for chain in DOZEN:
            game = make_game(*chain)
            measured.append(Inversion(decoders=(KernelRidge(),))(game).findings[0].value)
            estimated.append(Attribution()(game).findings[0].value)
    assert pearsonr(estimated, measured).statistic >= 0.9


def test_the_label_alone_is_estimated_to_leak_nothing(make_game) -> None:
    finding = Attribution()(make_game(sn.Label())).findings[0]
    assert finding.value == pytest.approx(0, abs=0.02)


def test_a_linear_gaussian_model_is_estimated_by_its_formula() -> None:
    """Two of six independent features reach the scores: a third of the variance."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 6, generator=generator)
    model = nn.Linear(6, 3, bias=False)
    model.weight.data = torch.zeros(3, 6)
    # Every row gets class 2, by a constant that a linear layer cannot give: use the bias.
    model.bias = nn.Parameter(torch.tensor([0.0, 0.0, 50.0]))
    model.weight.data[0, 0] = model.weight.data[1, 1] = 1.0
    game = Game(
        Shield(model),
        Examples("members", rows),
        Examples("nonmembers", rows[:50]),
        Examples("auxiliary", rows),
    )
    outcome = Attribution()(game)
    assert outcome.findings[0].value == pytest.approx(1 / 3, abs=0.03)
    leak = outcome.features["leak map"]
    assert (leak[:2] > 0.9).all()
    assert (leak[2:] < 0.05).all()


def independent(model: nn.Module, features: int, rows: int) -> Game:
    inputs = torch.randn(rows, features, generator=torch.Generator().manual_seed(0))
    return Game(
        Shield(model),
        Examples("members", inputs),
        Examples("nonmembers", inputs[:50]),
        Examples("auxiliary", inputs),
    )


@pytest.mark.parametrize(("features", "rows"), [(400, 100), (3000, 300)])
def test_features_that_outnumber_the_rows_are_no_leak(features, rows) -> None:
    """Ten numbers tell ten of so many features; the sample's own covariance said a third of all."""
    model = nn.Linear(features, 10)
    model.weight.data = torch.eye(10, features)
    model.bias.data = torch.zeros(10).index_fill(0, torch.tensor([3]), 50.0)
    finding = Attribution()(independent(model, features, rows)).findings[0]
    assert finding.value == pytest.approx(10 / features, abs=0.02)


class Bends(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :3].square() - 1, 9 + 0 * x[:, :1]], 1)


def test_a_model_that_no_linear_one_explains_is_not_estimated() -> None:
    """Its gradient at the mean is 0, and says nothing of what its squares give away."""
    with pytest.raises(NotApplicable, match="the model is curved: .* explains [0-9]% of"):
        Attribution()(independent(Bends(), 6, 300))


class Reads(nn.Module):
    """Reads a text by the mean of what its words say, the padding left out."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Embedding(60, 12) for _ in range(layers))
            self.places = nn.Embedding(20, 12)
            self.head = nn.Linear(12, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        felt = sum(layer(tokens) for layer in self.layers)
        felt = felt + 0.1 * self.places(torch.arange(tokens.shape[1]))
        kept = (tokens > 0).float().unsqueeze(-1)
        return 4 * self.head((felt * kept).sum(1) / kept.sum(1).clamp_min(1))


def texts(model: nn.Module) -> Game:
    """Makes texts of 12 words, the first of which are much more frequent."""
    generator = torch.Generator().manual_seed(0)
    drawn = (60 * torch.rand(1800, 12, generator=generator) ** 3).long()
    sets = zip(("members", "nonmembers", "auxiliary"), drawn.split(600), strict=True)
    return Game(Shield(model), *(Examples(name, part) for name, part in sets))


def test_words_that_leak_are_estimated_from_their_embeddings() -> None:
    game = texts(Reads())
    measured = Inversion(decoders=(Ridge(), KernelRidge()))(game)
    outcome = Attribution()(game)
    finding = outcome.findings[0]
    assert finding.value == pytest.approx(measured.findings[0].value, abs=0.08)
    leak, recovered = outcome.features["leak map"], measured.features["recovered"]
    assert rank_correlation(leak, recovered) > 0.6
    assert not any(layer._forward_hooks for layer in game.shield.model.modules())


def test_tokens_that_two_layers_read_are_not_attributed() -> None:
    with pytest.raises(NotApplicable, match="2 layers of nn.Embedding read them: it takes one"):
        Attribution()(texts(Reads(2)))


def test_jacobian_rows_are_autograds(digits_model) -> None:
    inputs = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = jacobian_rows(digits_model, inputs, 10)
    exact = torch.func.vmap(torch.func.jacrev(lambda x: digits_model(x.unsqueeze(0))[0]))(inputs)
    exact = exact.detach().flatten(2).double()
    assert torch.allclose(rows, exact - exact.mean(1, keepdim=True), atol=1e-6)


def test_the_model_keeps_its_gradients_and_mode(make_game, digits_model) -> None:
    Attribution()(make_game(sn.Label()))
    assert all(parameter.grad is None for parameter in digits_model.parameters())
    assert not digits_model.training


def test_a_model_of_probabilities_is_estimated_like_its_logits(make_game, digits_model) -> None:
    logits = Attribution()(make_game()).findings[0].value
    model = nn.Sequential(digits_model, nn.Softmax(-1)).eval()
    game = make_game(model=model, outputs="probabilities")
    assert Attribution()(game).findings[0].value == pytest.approx(logits, abs=0.1)


class Casts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3].float()


class NoGradient(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach().flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("model", "inputs", "classes", "words"),
    [
        (NoGradient(), torch.rand(50, 1, 4, 4), 3, "no gradient with respect to its input"),
        (nn.Flatten(), torch.ones(50, 4, dtype=torch.int64), 3, "no word tells one text from"),
        (Casts(), torch.ones(50, 4, 1, dtype=torch.int64), 3, "inputs of torch.int64"),
        (Casts(), torch.arange(200).reshape(50, 4) % 7, 3, "0 layers of nn.Embedding read"),
        (nn.Flatten(), torch.zeros(50, 3, 80, 80), 60, "19200 features and 60 classes"),
    ],
)
def test_what_has_no_gradient_or_is_too_large_does_not_apply(model, inputs, classes, words) -> None:
    examples = Examples("auxiliary", inputs)
    game = Game(Shield(model), examples, examples, examples)
    game._kept[(game.nonmembers.content, 1)] = game._kept[(game.auxiliary.content, 1)] = Answers(
        torch.ones(50, classes) / classes
    )
    with pytest.raises(NotApplicable, match=words):
        Attribution()(game)
