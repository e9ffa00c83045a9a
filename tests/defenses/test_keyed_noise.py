import math

import pytest
import torch
from scipy.stats import kstest
from torch import nn

import shieldnet as sn
from shieldnet.core.randomness import replayed_noise
from shieldnet.defenses.keyed_noise import keyed_words

KEY = b"sixteen bytes it is"


def test_equal_rows_get_equal_noise_and_others_get_others() -> None:
    noise = sn.KeyedNoise(1.0, KEY)
    rows = torch.zeros(3, 4)
    rows[2, 3] = 1.0
    answers = noise(rows)
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0, :3], answers[2, :3])
    assert torch.equal(noise(rows), answers)
    assert torch.equal(noise(rows[2:]), answers[2:]), "no matter what else is in the batch"
    assert not torch.equal(sn.KeyedNoise(1.0, KEY[::-1])(rows), answers)
    assert torch.equal(noise(-rows * 0)[0], answers[0]), "-0.0 is 0.0"


def test_to_whoever_lacks_the_key_the_noise_looks_normal_and_fresh() -> None:
    rows = torch.arange(20_000.0).unsqueeze(1).expand(-1, 3).contiguous()
    noise = (sn.KeyedNoise(2.0, KEY)(rows) - rows).double()
    assert (
        kstest((noise + torch.rand(noise.shape) * 0.25 - 0.125).flatten() / 2, "norm").pvalue > 1e-3
    )
    correlations = torch.corrcoef(torch.stack([*noise.T, noise[:, 0].roll(1)]))
    assert (correlations - torch.eye(4)).abs().max() < 5 / math.sqrt(20_000)


def test_noise_on_the_input_follows_the_bytes_of_the_input() -> None:
    model = nn.Linear(3, 4)
    shield = sn.Shield(model, sn.KeyedNoise(1.0, KEY, on="input"))
    x = torch.randn(5, 3)
    answers = shield(x)
    assert torch.equal(shield(x), answers)
    assert torch.equal(shield(x[3:]), answers[3:])
    moved = x.clone()
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(9.0))
    assert (shield(moved)[0] - answers[0]).abs().max() > 0.2
    assert torch.equal(shield(moved)[1:], answers[1:])


def test_noise_on_the_input_differs_between_positions() -> None:
    shield = sn.Shield(nn.Conv2d(1, 3, 1), sn.KeyedNoise(1.0, KEY, on="input"), axis=1)
    x = torch.zeros(2, 1, 2, 2)
    x[1] = 1.0
    answers = shield(x)
    assert torch.equal(shield(x[1:]), answers[1:])
    assert len(answers[0].flatten(1).T.unique(dim=0)) == 4


def test_without_the_input_there_is_no_answer() -> None:
    shield = sn.Shield(nn.Linear(3, 4), sn.KeyedNoise(1.0, KEY, on="input"))
    with pytest.raises(
        sn.errors.AnswerError, match=r"needs the model's input: call the shield itself"
    ):
        shield.defend(torch.zeros(2, 4))


def test_its_privacy_cost_is_infinite_and_its_key_is_never_shown(tmp_path) -> None:
    shield = sn.Shield(nn.Linear(3, 4), sn.ClipNorm(1.0), sn.KeyedNoise(1.0, KEY))
    assert shield.cost(4) == sn.PrivacyCost()
    assert "sixteen" not in repr(shield)
    with pytest.raises(
        sn.errors.ConfigError, match=r'secret and is not written .* key = "env:NAME"'
    ):
        sn.dump_shield(shield)


def test_a_key_comes_from_the_environment(tmp_path, monkeypatch) -> None:
    path = tmp_path / "shield.toml"
    table = '[[defense]]\nname = "KeyedNoise"\nscale = 1.0\nkey = "{}"'
    path.write_text("version = 1\n" + table.format("env:SHIELD_KEY"))
    monkeypatch.setenv("SHIELD_KEY", KEY.hex())
    (noise,) = sn.load_shield(nn.Linear(3, 4), path).defenses
    assert noise == sn.KeyedNoise(1.0, KEY)
    monkeypatch.setenv("SHIELD_KEY", "no digits")
    with pytest.raises(sn.errors.ConfigError, match="Expected hexadecimal digits in .* SHIELD_KEY"):
        sn.load_shield(nn.Linear(3, 4), path)
    path.write_text("version = 1\n" + table.format("0123456789abcdef0123"))
    with pytest.raises(sn.errors.ConfigError, match="a key does not belong into a file"):
        sn.load_shield(nn.Linear(3, 4), path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"key": b"short"}, "Expected a key of at least 16 secret bytes, got 5 bytes"),
        ({"key": "sixteen letters!"}, "at least 16 secret bytes, got no bytes"),
        ({"key": KEY, "on": "time"}, "Expected on to be one of answer, input"),
        ({"key": KEY, "step": 1e-9}, "Expected step >= scale/1024"),
    ],
)
def test_bad_settings_are_refused(settings, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.KeyedNoise(1.0, **settings)


def test_tags_tell_lengths_and_contents_apart() -> None:
    def words(*rows: list[int]) -> list[int]:
        return keyed_words([torch.tensor(rows, dtype=torch.uint8)], 2, KEY).tolist()

    assert words([1, 2, 3, 0]) != words([1, 2, 3, 0, 0, 0, 0, 0])
    assert words([1, 2, 3]) != words([1, 3, 2])
    assert keyed_words([torch.zeros(0, 3)], 4, KEY).shape == (0,)


class TestTheAttacksThatBeatIt:
    @pytest.fixture
    def game(self, make_game):
        def play(attack, *chain):
            with replayed_noise(0):
                (found,) = attack(make_game(*chain)).findings
            return found

        return play

    def test_jitter_averages_noise_that_is_keyed_on_the_input(self, game) -> None:
        from shieldnet.attacks import JitterAveraging

        found = game(JitterAveraging(queries=64), sn.KeyedNoise(2.0, KEY, on="input"))
        assert found.low > 0.9

    def test_jitter_that_stays_in_its_cell_finds_nothing(self, game) -> None:
        from shieldnet.attacks import JitterAveraging

        found = game(JitterAveraging(16, widths=(1e-7,)), sn.KeyedNoise(2.0, KEY, step=1.0))
        assert found.value < 0.1

    def test_wider_jitter_beats_the_cell_too(self, game) -> None:
        from shieldnet.attacks import JitterAveraging

        found = game(JitterAveraging(queries=64), sn.KeyedNoise(2.0, KEY))
        assert found.low > 0.8

    def test_ordinary_answers_teach_the_noise_table(self, game) -> None:
        from shieldnet.attacks import TableLearning

        found = game(TableLearning(), sn.KeyedNoise(5.0, KEY))
        assert found.low > 0.6

    def test_a_surrogate_finds_nothing_where_scores_have_no_pattern(self, make_game) -> None:
        from shieldnet.attacks import TableLearning

        class Hash(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return (x.flatten(1).sum(1, keepdim=True) * torch.arange(1e4, 1e4 + 10)).sin() * 20

        with replayed_noise(0):
            (found,) = TableLearning()(make_game(sn.KeyedNoise(1.0, KEY), model=Hash())).findings
        assert found.value < 0.1

    def test_without_noise_there_is_nothing_to_take_off(self, make_game) -> None:
        from shieldnet.attacks import JitterAveraging
        from shieldnet.findings.finding import NotApplicable

        with pytest.raises(NotApplicable, match="releases no scores with noise"):
            JitterAveraging()(make_game(sn.Round(1)))
