import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.core.frozen import FrozenDict
from shieldnet.shield.presets import PRESETS


class Maps(nn.Module):
    """Gives as many scores as its input has positions: (N, 3, H, W) of (N, H, W)."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([inputs, -inputs, inputs * 0], 1)


class Boxed(nn.Module):
    """Gives scores and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.scores(inputs), "boxes": self.boxes(inputs)}


BOXED = sn.ShieldSettings(
    (sn.Label(),),
    outputs={"logits": "logits", "boxes": "values"},
    also={"boxes": [sn.ClipRange(0.0, 1.0), sn.RoundTo(0.5)]},
    drop=["loss"],
)
MANY = [
    sn.ShieldSettings(),
    sn.ShieldSettings(PRESETS["open"], release="probabilities"),
    sn.ShieldSettings(PRESETS["balanced"], axis=1, micro_batch=8, extent=sn.Extent(3, (4, 4))),
    BOXED,
]


@pytest.mark.parametrize("settings", MANY, ids=["bare", "open", "segmentation", "fields"])
def test_settings_are_one_value(settings) -> None:
    sent = pickle.loads(pickle.dumps(settings))  # noqa: S301  # our own
    for again in (replace(settings), sent, copy.deepcopy(settings)):
        assert again == settings
        assert hash(again) == hash(settings)
        assert again.digest() == settings.digest()
        assert repr(again) == repr(settings)
    assert len({one.digest() for one in MANY}) == len(MANY) == len(set(MANY))


def test_a_setting_that_changes_links_the_chain_anew() -> None:
    settings = sn.ShieldSettings(PRESETS["open"])
    labels = replace(settings, release="labels")
    assert labels.chain.release == "labels" != settings.chain.release
    with pytest.raises(sn.errors.ConfigError, match="Put TopK"):
        replace(settings, defenses=(sn.Round(1), sn.TopK(3)))
    with pytest.raises(sn.errors.ConfigError, match="Expected extent as Extent"):
        sn.ShieldSettings(extent=10)  # type: ignore[arg-type]


def test_the_first_field_is_the_one_that_the_defenses_act_on() -> None:
    other = replace(
        BOXED, outputs={"boxes": "values", "logits": "logits"}, defenses=(), also={"logits": ()}
    )
    assert (BOXED.main, other.main) == ("logits", "boxes")
    assert other != replace(other, outputs=BOXED.outputs, also=BOXED.also)


def test_a_shield_is_made_of_settings_or_of_keywords_and_not_of_both(linear) -> None:
    settings = sn.ShieldSettings((sn.TopK(2),), release="probabilities", micro_batch=4)
    shield = sn.Shield(linear, settings)
    same = sn.Shield(linear, sn.TopK(2), release="probabilities", micro_batch=4)
    x = torch.randn(8, 6)
    assert shield.settings is settings
    assert shield.settings == same.settings
    assert torch.equal(shield(x), same(x))
    assert shield.with_model(nn.Linear(6, 4)).settings is settings
    with pytest.raises(
        sn.errors.ConfigError, match=r"ShieldSettings alone, got release, axis beside"
    ):
        sn.Shield(linear, settings, release="labels", axis=1)
    with pytest.raises(sn.errors.ConfigError, match="got outputs beside them"):
        sn.Shield.around(lambda x: x, settings, outputs="values")
    assert sn.Shield.around(lambda x: x, settings).settings is settings


def test_the_bare_shield_asks_the_model_in_the_same_batches(linear) -> None:
    assert sn.Shield(linear, sn.TopK(2), micro_batch=4).bare().micro_batch == 4


class TestExtents:
    def test_a_privacy_cost_depends_on_the_extent_and_on_no_answer_given_before(self) -> None:
        shield = sn.Shield(Maps(), sn.Label(), axis=1)
        small, large = sn.Extent(3, (4, 4)), sn.Extent(3, (8, 8))
        before = [shield.settings.cost(extent).bits for extent in (small, large)]
        shield(torch.randn(2, 8, 8))
        shield(torch.randn(2, 4, 4))
        assert [shield.settings.cost(extent).bits for extent in (small, large)] == before
        assert before == [pytest.approx(n * math.log2(3)) for n in (16, 64)]

    def test_a_declared_extent_is_counted_before_the_first_answer_and_never_exceeded(self) -> None:
        extent = sn.Extent(3, (4, 6))
        shield = sn.Shield(Maps(), sn.Label(), axis=1, extent=extent)
        cost = shield.cost()
        assert cost.bits == pytest.approx(24 * math.log2(3))
        assert shield.certificate().positions == 24
        shield(torch.randn(2, 3, 5))
        assert shield.cost() == cost
        for rows in (torch.randn(2, 5, 5), torch.randn(2, 4, 7)):
            with pytest.raises(sn.errors.AnswerError, match="the extent that was declared"):
                shield(rows)
        assert shield.cost() == cost
        assert shield.extent == extent

    def test_an_export_leaves_what_was_seen_as_it_was(self) -> None:
        noise = (sn.ClipNorm(1.0), sn.GaussianNoise(4.0))
        shield = sn.Shield(nn.Identity(), *noise, outputs="embeddings", axis=-1)
        example = (torch.randn(5, 100, 4),)
        torch.export.export(shield, example)
        assert shield.extent is None
        shield(torch.randn(2, 3, 4))
        cost = shield.cost()
        size = {"args": ({1: torch.export.Dim("length", min=4, max=200)},)}
        torch.export.export(shield, example, dynamic_shapes=size)
        assert shield.cost() == cost
        assert shield.extent == sn.Extent(4, (3,))
        assert "Shield(" in repr(shield)

    def test_other_classes_than_declared_are_refused(self, linear) -> None:
        shield = sn.harden(linear, extent=sn.Extent(5))
        with pytest.raises(
            sn.errors.AnswerError, match="Expected exactly 5 classes, the extent that was declared"
        ):
            shield(torch.randn(2, 6))

    def test_what_other_fields_cost_is_infinite_until_their_extent_is_known(self) -> None:
        main = BOXED.chain.cost(3).bits
        assert BOXED.cost(sn.Extent(3)).bits == math.inf
        known = sn.Extent(3, (), {"boxes": sn.Extent(2)})
        assert BOXED.cost(known).bits == pytest.approx(main + 2 * math.log2(3))
        assert BOXED.cost(sn.Extent(3, (), {"boxes": None})).bits == main
        with pytest.raises(sn.errors.ConfigError, match="extents of boxes, got masks"):
            BOXED.cost(sn.Extent(3, (), {"masks": sn.Extent(2)}))
        shield = sn.Shield(Boxed(), BOXED)
        shield(torch.rand(4, 4))
        assert shield.extent == known
        assert shield.cost() == BOXED.cost(known)

    def test_a_field_beyond_the_declared_extents_is_refused(self) -> None:
        small = replace(BOXED, extent=sn.Extent(3, (), {"boxes": sn.Extent(1)}))
        with pytest.raises(sn.errors.AnswerError, match="got 2 classes"):
            sn.Shield(Boxed(), small)(torch.rand(4, 4))
        unnamed = replace(BOXED, extent=sn.Extent(3))
        with pytest.raises(sn.errors.AnswerError, match="nothing of that name"):
            sn.Shield(Boxed(), unnamed)(torch.rand(4, 4))
        assert unnamed.cost(sn.Extent(3)).bits == math.inf

    @pytest.mark.parametrize(
        "bad", [{"classes": 0}, {"classes": 2, "positions": (0,)}, {"classes": True}]
    )
    def test_an_extent_counts(self, bad) -> None:
        with pytest.raises(sn.errors.ConfigError, match="Expected"):
            sn.Extent(**bad)


def test_a_frozen_dict_is_a_dict_in_its_order() -> None:
    one = FrozenDict({"a": 1, "b": 2})
    assert one == {"a": 1, "b": 2} != FrozenDict({"b": 2, "a": 1})
    assert repr(one) == "{'a': 1, 'b': 2}"
    assert one != 5


class TestFieldsOfAnExtent:
    def test_they_have_one_order_and_are_read_back_as_they_were_written(self, tmp_path) -> None:
        fields = {"z": None, "hidden": sn.Extent(2)}
        turned = dict(reversed(fields.items()))
        assert sn.Extent(3, (), fields) == sn.Extent(3, (), turned)
        made = sn.Shield(
            nn.Identity(),
            sn.ClipNorm(1.0),
            sn.GaussianNoise(1.0),
            outputs={"main": "embeddings"},
            also={"hidden": (), "z": ()},
            extent=sn.Extent(3, (), turned),
        )
        path = tmp_path / "shield.toml"
        path.write_text(sn.dump_shield(made))
        again = sn.load_shield(nn.Identity(), path)
        assert again.settings == made.settings
        assert again.settings.digest() == made.settings.digest()

    SETTINGS = replace(BOXED, defenses=(sn.RandomizedResponse(2.0),), also={"boxes": ()})

    @pytest.mark.parametrize("fields", [{}, {"boxes": None}])
    def test_a_field_that_was_priced_as_absent_is_not_released(self, fields) -> None:
        settings = sn.ShieldSettings(
            (sn.RandomizedResponse(2.0),),
            outputs={"logits": "logits"},
            also={"boxes": ()},
            extent=sn.Extent(3, (), fields),
        )
        with pytest.raises(
            sn.errors.AnswerError, match="Expected no field boxes, which the declared"
        ):
            sn.Shield(Boxed(), settings)(torch.rand(4, 4))

    def test_what_is_declared_absent_stays_so_in_the_shield_and_in_a_file(self, tmp_path) -> None:
        extent = sn.Extent(3, (), {"boxes": None})
        settings = replace(BOXED, extent=extent)
        shield = sn.Shield(Boxed(), settings)
        assert shield.extent == extent
        assert shield.cost() == settings.cost(extent) == settings.chain.cost(3)
        (tmp_path / "shield.toml").write_text(sn.dump_shield(shield))
        assert sn.load_shield(Boxed(), tmp_path / "shield.toml").settings == settings
        with pytest.raises(sn.errors.AnswerError, match="nothing of that name"):
            shield(torch.rand(4, 4))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: sn.Extent(3, 5), "Expected positions as"),
            (lambda: sn.Extent(3, (), {"a": 7}), "Expected fields as"),
            (lambda: sn.ShieldSettings(also={"a": 5}), "Expected also as"),
            (lambda: sn.ShieldSettings(also={1: ()}), "Expected also by names of fields"),
            (
                lambda: replace(BOXED, extent=sn.Extent(3, (), {"z": None})),
                "extents of boxes, got z",
            ),
        ],
    )
    def test_extents_of_nonsense_are_refused(self, make, words) -> None:
        with pytest.raises(sn.errors.ConfigError, match=words):
            make()

    def test_a_logits_processor_keeps_to_the_extent(self, linear) -> None:
        processor = sn.harden(linear, extent=sn.Extent(4)).logits_processor()
        assert processor(torch.zeros(2, 1), torch.randn(2, 4)).shape == (2, 4)
        with pytest.raises(
            sn.errors.AnswerError, match="Expected 4 words, the extent that was declared"
        ):
            processor(torch.zeros(2, 1), torch.randn(2, 5000))
