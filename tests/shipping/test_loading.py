"""A loaded shield answers as it was certified, and knows what an answer costs before the first."""

from functools import partial

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.data.hashing import weights_hash


class Network(nn.Module):
    """Answers with two heads, or with scores at as many positions as its input has."""

    def __init__(self, heads: bool = False) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x):
        return {"topic": x, "intent": x[:, :3]} if self.heads else x


def heads() -> Network:
    return Network(heads=True)


def loaded(folder, shield: sn.Shield, model=Network, **more) -> sn.Shield:
    return sn.load_hardened(sn.save_hardened(shield, folder / "h", **more), model)


@pytest.mark.parametrize(
    ("settings", "example"),
    [({}, torch.rand(4, 5)), ({"axis": 1}, torch.rand(4, 5, 2, 3))],
)
def test_a_loaded_shield_is_charged_for_before_its_first_answer(
    tmp_path, settings, example
) -> None:
    shield = sn.harden(Network().eval(), **settings)
    again = loaded(tmp_path, shield, example=example)
    shield(example)
    assert again.settings == shield.settings
    assert again.extent == shield.extent
    with sn.Guard(again, ledger=f"sqlite:///{tmp_path / 'l.db'}", queries_per_client=9) as guard:
        assert guard.charge("alice", 2).units == guard.units.times(2)
        assert guard.cost == shield.cost()
        assert torch.equal(guard(example, client="alice"), shield(example))
        with pytest.raises(sn.errors.AnswerError):
            guard(torch.rand(2, 7, *example.shape[2:]), client="alice")
        assert guard.left("alice")[0].queries == 1


def test_a_loaded_shield_of_several_heads_knows_what_each_costs(tmp_path) -> None:
    kinds = {"topic": "logits", "intent": "logits"}
    settings = {"outputs": kinds, "also": {"intent": (sn.Label(),)}}
    shield, x = sn.Shield(heads().eval(), sn.Label(), **settings), torch.rand(4, 5)
    again = loaded(tmp_path, shield, heads, example=x)
    shield(x)
    assert again.extent == shield.extent
    assert again.cost() == shield.cost()
    assert torch.equal(again(x)["intent"], shield(x)["intent"])
    assert again.extent == shield.extent


def test_a_loaded_shield_alone_still_answers_larger_inputs(tmp_path) -> None:
    shield = sn.harden(Network().eval(), axis=1)
    again = loaded(tmp_path, shield, example=torch.rand(4, 5, 2, 3))
    before = again.cost()
    again(torch.rand(4, 5, 4, 3))
    assert again.extent == sn.Extent(5, (4, 3))
    assert again.cost().bits == pytest.approx(2 * before.bits)


def test_without_a_certificate_the_first_answer_tells(tmp_path) -> None:
    again = loaded(tmp_path, sn.harden(Network().eval()))
    assert again.extent is None
    again(torch.rand(4, 5))
    assert again.extent == sn.Extent(5)


def bert(**more) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=20, intermediate_size=8, num_labels=3, **sizes, **more)
        return BertForSequenceClassification(config).eval()


def test_a_model_that_is_loaded_from_another_path_is_the_one_that_was_audited(tmp_path) -> None:
    """transformers keeps the path in the model, in the network inside it and in its config."""
    models = []
    for place in ("build", "server"):
        bert().save_pretrained(tmp_path / place)
        models.append(type(bert()).from_pretrained(tmp_path / place).eval())
    assert models[0].name_or_path != models[1].name_or_path
    shield = sn.harden(models[0])
    folder = sn.save_hardened(shield, tmp_path / "h", classes=3)
    again = sn.load_hardened(folder, models[1])
    words = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(words).logits, shield(words).logits)


def test_what_differs_from_the_audited_model_is_named(tmp_path) -> None:
    folder = sn.save_hardened(sn.harden(bert()), tmp_path / "h", classes=3)
    with pytest.raises(sn.errors.VerificationFailed, match=r"attributes .*config\.hidden_act"):
        sn.load_hardened(folder, bert(hidden_act="relu"))
    other = bert()
    for module in other.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-3
    with pytest.raises(sn.errors.VerificationFailed, match="attributes eps differ"):
        sn.load_hardened(folder, other)


def test_a_hash_that_covers_the_path_still_names_the_model(tmp_path, monkeypatch) -> None:
    """Folders of the first weeks were written so."""
    once = partial(weights_hash, placed=True)
    monkeypatch.setattr("shieldnet.shipping.model_files.weights_hash", once)
    folder = sn.save_hardened(sn.harden(bert()), tmp_path / "h", classes=3)
    assert once(bert()) != weights_hash(bert())
    assert sn.load_hardened(folder, bert()).settings == sn.harden(bert()).settings


def test_an_attribute_of_any_name_does_not_stop_the_folder(tmp_path) -> None:
    model = Network().eval()
    setattr(model, "two\nlines", 1)
    setattr(model, "long" * 200, 1)
    folder = sn.save_hardened(sn.harden(model), tmp_path / "h", classes=5)
    assert '"heads"' in (folder / "model.json").read_text()
