import copy
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import shieldnet as sn

LAST = sn.trainable.LastLayer()


def accuracy(model, data) -> float:
    inputs, labels = data
    return float((model(inputs).argmax(-1) == labels).double().mean())


def same(one, other) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_private_training_learns_within_its_epsilon(table, mlp) -> None:
    found = sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), epochs=60, learning_rate=0.5, seed=0)
    assert accuracy(found.model, table) > 0.75
    assert 7.9 < found.guarantee.epsilon <= 8
    assert (found.guarantee.sample_rate, found.guarantee.steps, found.steps) == (1.0, 60, 60)
    assert not found.model.training


@pytest.mark.parametrize(("batch", "epochs"), [(16, 3), (7, 2), (50, 2.5), (120, 4)])
def test_steps_are_counted_exactly(batch, epochs, table, mlp, monkeypatch) -> None:
    taken = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (taken.append(1), step(self))[1])
    found = sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), batch_size=batch, epochs=epochs, seed=0)
    assert len(taken) == found.steps == found.guarantee.steps
    assert found.guarantee.sample_rate == batch / 120


def test_the_model_the_global_seed_and_the_loggers_are_left_alone(table, mlp) -> None:
    before = {name: one.clone() for name, one in mlp.state_dict().items()}
    mlp.train()
    state, handlers = torch.get_rng_state(), list(logging.root.handlers)
    found = sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3, canaries=20), epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.root.handlers == handlers
    assert all(torch.equal(one, before[name]) for name, one in mlp.state_dict().items())
    assert mlp.training
    assert all(one.grad is None for one in (*mlp.parameters(), *found.model.parameters()))
    assert list(found.model.state_dict()) == list(mlp.state_dict())
    for one in found.model.modules():
        assert not one._forward_hooks
        assert not one._backward_hooks
        assert not hasattr(one, "activations")
    for one in found.model.parameters():
        assert not hasattr(one, "grad_sample")


def test_a_seed_gives_the_same_model_and_no_seed_another(table, mlp) -> None:
    def train(seed):
        return sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), epochs=2, batch_size=30, seed=seed)

    assert same(train(1).model, train(1).model)
    assert not same(train(1).model, train(2).model)
    assert not same(train(None).model, train(None).model)
    assert any("seed" in one for one in train(1).guarantee.caveats)
    assert train(None).guarantee.caveats == ()


def test_physical_batches_change_nothing(table, mlp) -> None:
    models = [
        sn.finetune(
            mlp, table, sn.DPSGD(8.0, 1e-3, max_physical_batch_size=rows), epochs=2, seed=0
        ).model
        for rows in (7, 120)
    ]
    for one, other in zip(*(each.parameters() for each in models), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_sum_gets_the_noise_that_is_claimed(table) -> None:
    """A loss without a slope leaves nothing but the noise in the weights."""
    model = nn.Linear(12, 500)
    private = sn.DPSGD(noise_multiplier=3.0, delta=1e-3, max_grad_norm=0.5)
    found = sn.finetune(
        model,
        table,
        private,
        epochs=1,
        learning_rate=1.0,
        momentum=0.0,
        loss=lambda o, y: 0 * o.sum(1),
        seed=0,
    )
    moved = (found.model.weight - model.weight).detach() * 120
    assert float(moved.std()) == pytest.approx(3.0 * 0.5, rel=0.03)
    assert abs(float(moved.mean())) < 0.1


@pytest.mark.parametrize(
    ("train", "wanted"),
    [
        (sn.trainable.Full(), {"0.weight", "0.bias", "2.weight", "2.bias"}),
        (sn.trainable.LastLayer(), {"2.weight", "2.bias"}),
        (sn.trainable.Biases(), {"0.bias", "2.bias"}),
        (sn.trainable.LoRA(), {"0.weight", "2.weight"}),
    ],
    ids=["full", "last", "biases", "lora"],
)
def test_a_part_is_trained_and_the_rest_stays(train, wanted, table, mlp) -> None:
    found = sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), epochs=5, train=train, seed=0).model
    moved = {
        name
        for name, one in found.state_dict().items()
        if not torch.equal(one, mlp.state_dict()[name])
    }
    assert moved == wanted
    assert list(found.state_dict()) == list(mlp.state_dict())
    assert all(one.requires_grad for one in found.parameters())


def test_a_low_rank_change_has_low_rank(table, mlp) -> None:
    found = sn.finetune(mlp, table, epochs=3, train=sn.trainable.LoRA(2), seed=0).model
    change = (found[0].weight - mlp[0].weight).detach()
    assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == 2


def test_the_last_layer_is_trained_on_what_goes_into_it(table, mlp) -> None:
    private = sn.DPSGD(8.0, 1e-3)
    quick = sn.finetune(mlp, table, private, epochs=3, train=LAST, seed=0).model
    slow = sn.finetune(
        mlp, table, private, sn.countermeasures.Augment(noise=1e-9), epochs=3, train=LAST, seed=0
    )
    for one, other in zip(quick.parameters(), slow.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_ema_releases_the_mean_of_the_weights(table, mlp) -> None:
    models = [
        sn.finetune(
            mlp, table, sn.DPSGD(0.5, 1e-3, ema=ema), epochs=30, learning_rate=1.0, seed=0
        ).model
        for ema in (0.0, 0.9)
    ]
    away = [float((one[0].weight - mlp[0].weight).detach().norm()) for one in models]
    assert away[1] < away[0]


def test_regressions_yes_or_no_and_segmentations_are_trained(table, images, make_model) -> None:
    inputs, labels = table
    private = sn.DPSGD(8.0, 1e-3)
    line = make_model(lambda: nn.Linear(12, 1))
    found = sn.finetune(
        line,
        (inputs, inputs[:, 0]),
        private,
        outputs="values",
        epochs=40,
        learning_rate=0.2,
        seed=0,
    )
    error = (found.model(inputs)[:, 0] - inputs[:, 0]).square().mean()
    assert error < 0.8 * (line(inputs)[:, 0] - inputs[:, 0]).square().mean()
    yes = (labels == 0).long()
    found = sn.finetune(
        line, (inputs, yes), private, outputs="binary_logits", epochs=40, learning_rate=0.5, seed=0
    )
    assert ((found.model(inputs)[:, 0] > 0) == yes).double().mean() > 0.7
    images = images[0]
    pixels = (images[:, 0] > 0).long()
    found = sn.finetune(
        make_model(lambda: nn.Conv2d(3, 2, 1)),
        (images, pixels),
        private,
        epochs=40,
        learning_rate=0.5,
        seed=0,
    )
    assert (found.model(images).argmax(1) == pixels).double().mean() > 0.8


def test_datasets_are_read(table, mlp) -> None:
    assert same(
        sn.finetune(mlp, TensorDataset(*table), epochs=1, seed=0).model,
        sn.finetune(mlp, table, epochs=1, seed=0).model,
    )


def causal(**settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20,
            n_positions=8,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def classifier():
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=3,
        )
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [causal, classifier])
def test_hugging_face_models_are_trained_privately(make, make_model) -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 20, (40, 7), generator=generator)
    data = (words[:, :-1], words[:, 1:]) if make is causal else (words, words[:, 0] % 3)
    model = make_model(make)
    for train in (sn.trainable.Full(), sn.trainable.LoRA()):
        found = sn.finetune(
            model, data, sn.DPSGD(8.0, 1e-3), epochs=1, train=train, axis=-1, seed=0
        )
        assert found.preflight.sensitivity <= 1
        assert list(found.model.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("clip", ["1.0", "sn.AdaptiveClip(start=3.0)"])
def test_a_training_goes_on_where_it_was_stopped(clip, table, mlp, tmp_path) -> None:
    settings = {"epochs": 6, "batch_size": 30, "seed": 3, "progress": False}
    clips = {"1.0": 1.0, "sn.AdaptiveClip(start=3.0)": sn.AdaptiveClip(start=3.0)}
    private = sn.DPSGD(8.0, 1e-3, ema=0.5, canaries=30, max_grad_norm=clips[clip])
    whole = sn.finetune(mlp, table, private, **settings)
    script = f"""
import os, sys
import torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
import shieldnet as sn
from shieldnet.training import checkpoint
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(120, 12, generator=generator)
table = inputs, inputs[:, :3].argmax(1)
torch.manual_seed(0)
mlp = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
real_save = checkpoint.save
def save(folder, key, state):
    real_save(folder, key, state)
    if state.step == 11:
        os._exit(7)  # as if it was killed
checkpoint.save = save
sn.finetune(
    mlp, table, sn.DPSGD(8.0, 1e-3, ema=0.5, canaries=30, max_grad_norm={clip}),
    checkpoint={str(tmp_path)!r}, checkpoint_every_s=1e-9, **{settings!r},
)
"""
    stopped = subprocess.run([sys.executable, "-c", script], check=False, env=os.environ)
    assert stopped.returncode == 7
    found = sn.finetune(mlp, table, private, checkpoint=tmp_path, **settings)
    for one, other in zip(whole.model.parameters(), found.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert replace(found.guarantee, weights="") == replace(whole.guarantee, weights="")
    assert [one.value for one in found.findings] == [one.value for one in whole.findings]


def test_a_checkpoint_of_another_training_or_a_broken_one_is_refused(table, mlp, tmp_path) -> None:
    settings = {"epochs": 2, "seed": 3, "checkpoint": tmp_path}
    sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), **settings)
    with pytest.raises(sn.errors.TrainingFailed, match="belongs to another training"):
        sn.finetune(mlp, table, sn.DPSGD(2.0, 1e-3), **settings)
    (tmp_path / "finetune.pt").write_bytes(b"nonsense")
    with pytest.raises(sn.errors.TrainingFailed, match="does not match its key"):
        sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), **settings)


def test_a_checkpoint_is_never_unpickled(table, mlp, tmp_path) -> None:
    import pickle

    (tmp_path / "finetune.pt").write_bytes(pickle.dumps(subprocess.Popen))
    (tmp_path / "finetune.key").write_bytes(bytes(32))
    with pytest.raises(sn.errors.TrainingFailed, match="does not match its key"):
        sn.finetune(mlp, table, epochs=1, checkpoint=tmp_path)


def test_a_training_that_diverges_returns_nothing(table, mlp) -> None:
    with pytest.raises(sn.errors.TrainingFailed, match="Take a smaller learning_rate"):
        sn.finetune(
            mlp,
            (table[0] * 100, table[0].sum(1)),
            learning_rate=1e12,
            loss=lambda o, y: (o.sum(1) - y) ** 2,
            epochs=30,
            seed=0,
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "Expected a finite epochs > 0"),
        ({"learning_rate": float("nan")}, "Expected a finite learning_rate > 0"),
        ({"batch_size": 0}, "Expected batch_size >= 1"),
        ({"momentum": 1.0}, "Expected momentum from 0 to below 1"),
        ({"optimizer": "lion"}, "Expected optimizer to be one of"),
        ({"train": "lora"}, "Expected train to be a value such as sn.trainable.LoRA"),
        ({"train": sn.trainable.LoRA}, "Expected train to be a value"),
        ({"outputs": "labels"}, "Expected outputs to be one of"),
        ({"fix": "yes"}, "Expected fix to be true or false"),
        ({"seed": -1}, "Expected seed from 0"),
        ({"loss": 3}, r"Expected loss\(output, labels\)"),
        ({"momentum": 0.5, "optimizer": "adam"}, "adam has no momentum"),
        ({"rank": 2}, r"finetune has no rank=: pass train=sn.trainable.LoRA\(rank=2\)"),
        ({"part": "lora"}, r"finetune has no part=: pass train=sn.trainable.LoRA\(rank=4\)"),
        ({"part": "last"}, r"finetune has no part=: pass train=sn.trainable.LastLayer\(\)"),
        ({"part": ["half"]}, r"finetune has no part=: pass train=sn.trainable.LoRA\(rank=4\)"),
        ({"loss": nn.MSELoss(), "outputs": "values"}, "omit outputs and axis"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words, table, mlp) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.finetune(mlp, table, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "Expected either epsilon or noise"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}, "Expected either epsilon or"),
        ({"epsilon": 1.0}, "Expected delta"),
        ({"epsilon": -1.0, "delta": 1e-3}, "Expected a finite epsilon > 0"),
        (
            {"epsilon": 1.0, "delta": 1e-3, "max_grad_norm": 0.0},
            "Expected a finite max_grad_norm > 0",
        ),
        (
            {"epsilon": 1.0, "delta": 1e-3, "max_grad_norm": 1e-31},
            "Expected max_grad_norm from 1e-30 to 1e30",
        ),
        ({"epsilon": 1.0, "delta": 1e-3, "canaries": 5}, "Expected at least 20 canaries"),
        ({"epsilon": 1.0, "mode": "empirical"}, "takes noise_multiplier, and neither"),
    ],
)
def test_private_settings_that_make_no_sense_are_refused(settings, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.DPSGD(**settings)


def test_a_delta_that_allows_a_record_to_be_published_is_refused(table, mlp) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected delta below 1 / 120 records"):
        sn.finetune(mlp, table, sn.DPSGD(1.0, 1e-2))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((torch.zeros(0, 3), torch.zeros(0)), "Expected inputs with a row"),
        ((torch.zeros(4, 3), torch.zeros(3)), "Expected as many labels"),
        ("nothing", "pairs"),
        (7, "Expected \\(inputs, labels\\)"),
    ],
)
def test_data_that_is_none_is_refused(data, words, mlp) -> None:
    with pytest.raises(sn.errors.DataError, match=words):
        sn.finetune(mlp, data)


def test_records_are_read_in_the_type_of_the_model(table, make_model) -> None:
    model = make_model(lambda: nn.Linear(12, 3))
    data = table[0].double().numpy(), table[1].numpy()
    for one in (model, copy.deepcopy(model).double()):
        found = sn.finetune(one, data, sn.DPSGD(8.0, 1e-3), epochs=1, seed=0).model
        assert found.weight.dtype == one.weight.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_guarantee_is_the_same_in_every_type(dtype, table, make_model) -> None:
    model = make_model(lambda: nn.Linear(12, 3)).to(dtype)
    found = sn.finetune(model, table, sn.DPSGD(8.0, 1e-3), epochs=2, seed=0)
    assert found.model.weight.dtype == dtype
    assert found.guarantee.epsilon == pytest.approx(8, rel=0.01)
    assert found.guarantee.epsilon <= 8


def test_low_rank_changes_reach_layers_whose_weights_are_read_past_them(table, make_model) -> None:
    def attending() -> nn.Module:
        class Attending(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
                self.head = nn.Linear(12, 3)

            def forward(self, x):
                return self.head(self.layer(x.unsqueeze(1).expand(-1, 3, 12))[:, 0])

        return Attending()

    model = make_model(attending)
    found = sn.finetune(
        model, table, sn.DPSGD(8.0, 1e-3), epochs=2, train=sn.trainable.LoRA(), seed=0
    ).model
    assert list(found.state_dict()) == list(model.state_dict())


def test_what_does_not_fit_is_said_before_anything_is_trained(table, mlp) -> None:
    inputs, labels = table
    with pytest.raises(sn.errors.DataError, match="Expected labels from 0 to 2.*got 5 to 7"):
        sn.finetune(mlp, (inputs, labels + 5))
    with pytest.raises(sn.errors.DataError, match=r"failed on inputs of shape \(2, 5\)"):
        sn.finetune(mlp, (inputs[:, :5], labels))
    with pytest.raises(sn.errors.DataError, match="Expected a label for each of the values"):
        sn.finetune(mlp, (inputs, labels.float()), outputs="values")
    for wrong in (labels * 290, labels.float() - 0.5):
        data = inputs, wrong[:, None].expand(-1, 3)
        with pytest.raises(
            sn.errors.DataError, match="Expected labels of binary_logits from 0 to 1"
        ):
            sn.finetune(mlp, data, sn.DPSGD(8.0, 1e-3), outputs="binary_logits")
    with pytest.raises(sn.errors.ConfigError, match="Expected an nn.Module"):
        sn.finetune("model", table)


def test_shared_and_tied_layers_give_what_was_trained(table, make_model) -> None:
    shared = make_model(lambda: nn.Linear(12, 12))
    twice = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(12, 3))
    found = sn.finetune(twice, table, epochs=60, train=sn.trainable.LoRA(4), seed=0).model
    assert found[0] is found[2]
    assert accuracy(found, table) > accuracy(twice, table) + 0.2

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, words):
            return self.head(self.table(words).mean(1))

    words = torch.randint(0, 20, (60, 4), generator=torch.Generator().manual_seed(0))
    data = words, words[:, 0]
    model = make_model(Tied)
    with pytest.raises(sn.errors.ConfigError, match="with untied weights"):
        sn.finetune(model, data, train=sn.trainable.LoRA())
    loss = nn.CrossEntropyLoss()
    found = sn.finetune(model, data, train=LAST, epochs=20, seed=0).model
    lost = [float(loss(one(words), data[1]).detach()) for one in (found, model)]
    assert lost[0] < lost[1]


def test_batch_norm_of_numbers_can_be_mended(table, make_model) -> None:
    model = make_model(
        lambda: nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    )
    private = sn.DPSGD(epsilon=100.0, delta=1e-3)
    found = sn.finetune(model, table, private, epochs=60, learning_rate=0.5, fix=True, seed=0).model
    assert accuracy(found, table) > 0.9
    part = sn.finetune(
        model, table, sn.DPSGD(8.0, 1e-3), epochs=2, train=sn.trainable.Biases(), fix=True, seed=0
    )
    assert torch.equal(part.model[1].weight, model[1].weight)


def test_class_weights_keep_the_scale_of_the_loss() -> None:
    from shieldnet.training.losses import as_loss

    scores = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 100.0, 1.0]))
    ours = as_loss(weighted, "logits", None)(scores, labels).mean()
    assert float(ours) == pytest.approx(float(weighted(scores, labels)), rel=1e-5)


def test_yes_or_no_leaves_out_what_is_not_labeled() -> None:
    from shieldnet.training.losses import Criterion

    scores = torch.tensor([[2.0, 2.0, 2.0]])
    found = Criterion("binary_logits")(scores, torch.tensor([[1, 0, -100]]))
    right = nn.functional.binary_cross_entropy_with_logits(
        scores[:, :2], torch.tensor([[1.0, 0.0]])
    )
    assert float(found) == pytest.approx(float(right))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(120, 1, dtype=torch.int64), r"Flatten labels of shape \(records, 1\)"),
        (torch.zeros(120), "For a regression pass outputs='values'"),
    ],
)
def test_labels_of_another_form_are_refused(labels, words, table, mlp) -> None:
    with pytest.raises(sn.errors.ShieldnetError, match=words):
        sn.finetune(mlp, (table[0], labels))


def test_one_number_a_record_asks_what_it_is(table, make_model) -> None:
    line = make_model(lambda: nn.Linear(12, 1))
    with pytest.raises(sn.errors.DataError, match="pass outputs='binary_logits' or 'values'"):
        sn.finetune(line, (table[0], (table[1] == 0).long()))
    yes = sn.finetune(line, (table[0], table[1] == 0), outputs="binary_logits", epochs=1, seed=0)
    assert yes.steps == 2


def test_two_pairs_are_a_dataset(make_model) -> None:
    pairs = [(torch.ones(3), 0), (-torch.ones(3), 1)]
    found = sn.finetune(make_model(lambda: nn.Linear(3, 2)), pairs, epochs=20, seed=0).model
    assert found(torch.ones(1, 3)).argmax() == 0


def test_a_last_batch_of_one_is_no_batch(make_model) -> None:
    model = make_model(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    data = torch.randn(65, 3, generator=torch.Generator().manual_seed(0)), torch.arange(65) % 2
    assert sn.finetune(model, data, epochs=2, seed=0).steps == 4


def test_a_run_that_is_killed_in_its_first_save_begins_anew(
    tmp_path, monkeypatch, table, mlp
) -> None:
    """The state was there and what names its run was not, or the other way: neither went on."""
    from shieldnet.training import checkpoint as kept

    settings = {"epochs": 3, "seed": 0, "checkpoint": tmp_path, "checkpoint_every_s": 1e-9}
    plain = sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), epochs=3, seed=0)
    replace = kept._replace
    for fatal in (1, 2, 3, 4):
        calls = []

        def dies(path, content, calls=calls, fatal=fatal) -> None:
            calls.append(path)
            if len(calls) == fatal:
                raise KeyboardInterrupt
            replace(path, content)

        monkeypatch.setattr(kept, "_replace", dies)
        folder = tmp_path / str(fatal)
        with pytest.raises(KeyboardInterrupt):
            sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), **{**settings, "checkpoint": folder})
        monkeypatch.setattr(kept, "_replace", replace)
        again = sn.finetune(mlp, table, sn.DPSGD(8.0, 1e-3), **{**settings, "checkpoint": folder})
        assert again.guarantee.epsilon == plain.guarantee.epsilon
        assert (folder / "finetune.pt").exists()
