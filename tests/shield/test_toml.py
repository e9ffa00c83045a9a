import math

import numpy as np
import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.shield.presets import PRESETS


def load(tmp_path, text: str) -> sn.Shield:
    path = tmp_path / "shield.toml"
    path.write_text(text)
    return sn.load_shield(nn.Linear(3, 4), path)


@pytest.mark.parametrize(
    "chain",
    [
        (),
        (sn.TopK(3), sn.Round(1)),
        (sn.Temperature(0.7), sn.ClipNorm(10.0), sn.GaussianNoise(8.0), sn.Label()),
        *PRESETS.values(),
    ],
    ids=str,
)
@pytest.mark.parametrize("release", ["logits", "probabilities", "labels"])
def test_a_shield_written_down_is_read_back_equal(tmp_path, chain, release) -> None:
    shield = sn.Shield(nn.Linear(3, 4), *chain, release=release)
    again = load(tmp_path, sn.dump_shield(shield))
    assert again.chain == shield.chain
    assert again.release == shield.release


def test_what_nobody_said_the_outputs_are_is_written_down_too(tmp_path) -> None:
    """Around a function, whose outputs would be probabilities, the file means what was audited."""
    shield = sn.harden(nn.Linear(3, 4))
    assert "outputs" not in sn.dump_shield(shield), "before an answer it is a guess"
    shield(torch.randn(8, 3))
    text = sn.dump_shield(shield)
    assert 'outputs = "logits"' in text
    path = tmp_path / "shield.toml"
    path.write_text(text)
    around = sn.load_shield(lambda rows: np.asarray(rows) * 5.0, path)
    assert around(np.array([[1.0, -2.0, 0.5]])).argmax() == 0


def test_a_preset_can_be_named(tmp_path) -> None:
    assert load(tmp_path, 'version = 1\npreset = "open"').defenses == PRESETS["open"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[defense]]\nname = "TopK"\nkk = 3', "TopK has no setting kk. It has: k, or_all."),
        ('[[defense]]\nname = "Label"\nk = 3', "Label has no setting k. It has: none."),
        ('[[defense]]\nname = "TopK"', "TopK is missing a setting. It has: k"),
        ('[[defense]]\nname = "TopK"\nk = 3\nor_all = "no"', "Expected or_all to be true or false"),
        ('preset = "open"\nrelease = false', "Expected release to be one of"),
        ('[[defense]]\nname = "Topk"\nk = 3', "Expected name to be one of ClipNorm.*got 'Topk'"),
        ('[[defense]]\nname = "TopK"\nk = 0', "Expected k >= 1"),
        ('[[defense]]\nname = "Round"\ndigits = -1', "Expected digits from 0 to 6.*digits=-1"),
        ('[[defense]]\nname = "ClipNorm"\nbound = nan', "Expected a finite bound > 0"),
        ('[[defense]]\nname = "GaussianNoise"\nscale = inf', "Expected a finite scale > 0"),
        ('presets = "open"', "A shield has no setting presets. It has: version, outputs"),
        (
            'preset = "opne"',
            "Expected preset to be one of strict, .*; got 'opne'",
        ),
        ("preset = 3", "Expected preset to be one of"),
        ("", "Expected either preset or"),
        ('preset = "open"\ndefense = []', "Expected either preset or"),
        ('defense = ["Label"]', r"Expected \[\[defense\]\] tables"),
        ('preset = "open"\noutputs = "x"', "Expected outputs to be one of"),
    ],
)
def test_what_toml_says_wrong_is_said_back(tmp_path, text, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        load(tmp_path, f"version = 1\n{text}")


def test_another_version_is_refused(tmp_path) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected version = 1 in .*got 2"):
        load(tmp_path, 'version = 2\npreset = "open"')
    with pytest.raises(sn.errors.ConfigError, match="got none"):
        load(tmp_path, 'preset = "open"')


def test_broken_and_missing_files_are_named(tmp_path) -> None:
    with pytest.raises(sn.errors.ConfigError, match="is not valid TOML"):
        load(tmp_path, "version = = 1")
    with pytest.raises(sn.errors.DataError, match="Cannot read .*nowhere.toml: No such file"):
        sn.load_shield(nn.Linear(3, 4), tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sn.TopK(0), "Expected k >= 1 .a whole number., got k=0"),
        (lambda: sn.Confidence(0), "Expected bins from 1"),
        (lambda: sn.ClipNorm(math.nan), "Expected a finite bound > 0, got bound=nan"),
        (lambda: sn.ClipNorm(-1.0), "Expected a finite bound > 0, got bound=-1.0"),
        (lambda: sn.Temperature(10**400), "Expected a finite temperature > 0"),
        (lambda: sn.Temperature(math.inf), "Expected a finite temperature > 0"),
        (lambda: sn.GaussianNoise(0.0), "Expected a finite scale > 0"),
        (lambda: sn.GaussianNoise(1.0, step=0.3), "Expected step to be a power of two"),
        (lambda: sn.GaussianNoise(1.0, step=2.0**-20), "power of two >= scale/1024"),
        (
            lambda: sn.harden(nn.Linear(2, 2), "safe"),
            "strict, balanced, open, certified; got 'safe'",
        ),
    ],
)
def test_a_bad_setting_never_exists(make, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        make()


def test_the_presets_cost_what_the_readme_says() -> None:
    bits = {name: sn.harden(nn.Linear(3, 10), name).cost(10).bits for name in PRESETS}
    assert bits["strict"] == pytest.approx(math.log2(10))
    assert bits["balanced"] == pytest.approx(math.log2(40))
    assert bits["open"] == pytest.approx(math.log2(120 * 286))


def test_every_preset_serves_two_classes() -> None:
    for name in PRESETS:
        answers = sn.harden(nn.Linear(3, 2), name)(torch.randn(5, 3))
        assert torch.isfinite(answers).all()


def test_a_structured_shield_written_down_is_read_back_equal(tmp_path) -> None:
    shield = sn.Shield(
        nn.Linear(3, 4),
        sn.Coarsen(2),
        sn.RandomizedResponse(2.0, bins=2),
        outputs={"logits": "logits", "boxes": "values", "a.b": "embeddings"},
        axis={"logits": 1},
        also={"boxes": (sn.ClipRange(0.0, 1.0), sn.RoundTo(0.1)), "mask": (), "a.b": (sn.Sign(),)},
        drop=("loss", "hidden_states"),
        micro_batch=16,
        extent=sn.Extent(4, (8, 8), {"boxes": sn.Extent(4), "a.b": sn.Extent(16)}),
    )
    again = load(tmp_path, sn.dump_shield(shield))
    assert again.settings == shield.settings
    assert again.settings.digest() == shield.settings.digest()
    assert sn.dump_shield(again) == sn.dump_shield(shield)


def test_what_could_not_be_read_back_is_not_written(tmp_path) -> None:
    from shieldnet.defenses.heuristics import RankSwap

    with pytest.raises(sn.errors.ConfigError, match="RankSwap cannot be read back from a file"):
        sn.dump_shield(sn.Shield(nn.Linear(3, 4), RankSwap()))
    odd = sn.Shield(nn.Linear(3, 4), sn.Label(), drop=("\U0001f600", 'a"b\\', "\x7f\n"))
    assert load(tmp_path, sn.dump_shield(odd)).settings == odd.settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preset = 'open'\nalso = 3", r"Expected \[\[also.FIELD\]\] tables"),
        ("preset = 'open'\nalso = {boxes = 3}", r"Expected \[\[also.boxes\]\] tables"),
        ("preset = 'open'\naxis = 'last'", "Expected axis as an integer"),
        ("preset = 'open'\nmicro_batch = 0", "Expected micro_batch >= 1"),
        ("preset = 'open'\nextent = 3", "Expected extent = { classes = 10 }"),
        ("preset = 'open'\nextent = {classes = 3, width = 2}", "Expected extent = {"),
        ("preset = 'open'\nextent = {classes = 3, positions = 4}", "Expected positions = "),
        ("preset = 'open'\nextent = {classes = 0}", "Expected classes >= 1"),
        ("preset = 'open'\noutputs = {}", "Expected outputs to name at least one field"),
        ("preset = 'open'\noutputs = 3", "Expected outputs"),
        ("preset = 'open'\ndrop = 3", "Expected drop"),
    ],
)
def test_wrong_shapes_of_settings_are_said_back(tmp_path, text, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        load(tmp_path, f"version = 1\n{text}")
