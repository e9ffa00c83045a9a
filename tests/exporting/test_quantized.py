"""Models of low precision: the shield, its graphs and the audit take them, or say why not."""

import copy

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.data.hashing import tensors_hash, weights_hash

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


class Autocast(nn.Module):
    """Computes in bfloat16 what it is asked in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = network()

    def forward(self, rows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inside(rows)


def by_torchao(kind: str) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    model = network()
    quantization.quantize_(model, getattr(quantization, kind)())
    return model


MODELS = {
    "bfloat16": lambda: network().bfloat16(),
    "float16": lambda: network().half(),
    "autocast": lambda: Autocast().eval(),
    "int8 weights": lambda: by_torchao("Int8WeightOnlyConfig"),
    "int8 by row": lambda: by_torchao("Int8DynamicActivationInt8WeightConfig"),
}


def rows_of(name: str) -> Tensor:
    return X.to({"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, X.dtype))


def loaded(path) -> nn.Module:
    return torch.export.load(path).module()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_low_precision_is_hardened_and_exported(name, tmp_path) -> None:
    model, rows = MODELS[name](), rows_of(name)
    for preset in ("strict", "balanced", "open"):
        shield = sn.harden(model, preset)
        answers = shield(rows)
        assert answers.dtype == torch.float32
        assert torch.equal(answers.argmax(1), model(rows).argmax(1))
        path = tmp_path / f"{preset}.pt2"
        sn.export(shield, rows[:3], path)
        assert torch.equal(loaded(path)(rows), answers)


@pytest.mark.parametrize("name", ["float16", "int8 weights"])
def test_onnx_runtime_gives_the_same_classes(name, tmp_path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model, rows = MODELS[name](), rows_of(name)
    sn.export(sn.harden(model), rows[:3], tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    (answers,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
    assert (answers.argmax(1) == model(rows).argmax(1).numpy()).all()


@pytest.mark.parametrize("name", ["bfloat16", "autocast", "int8 by row"])
def test_what_onnx_runtime_does_not_have_is_refused_with_what_does(name, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(sn.errors.ConfigError, match=r"\.pt2"):
        sn.export(sn.harden(MODELS[name]()), rows_of(name)[:3], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_low_precision_is_audited(name) -> None:
    model, rows = MODELS[name](), rows_of(name)
    labels = network()(X).argmax(1)
    sets = [(rows[part : part + 20], labels[part : part + 20]) for part in (0, 20, 40)]
    report = sn.audit(
        sn.harden(model),
        **dict(zip(("members", "nonmembers", "auxiliary"), sets, strict=True)),
        tier="quick",
        shadows=0,
        seed=0,
    )
    assert report["shield"]["accuracy"].value > 0.8
    assert "membership.auc" in {finding.name for finding in report["bare"].findings}


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_quantized_weights_are_told_apart_by_every_part(kind) -> None:
    model = by_torchao(kind)
    same, other = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.scale[0] *= 2
    for hashed in (weights_hash, lambda made: tensors_hash(made.state_dict())):
        assert hashed(model) == hashed(same) != hashed(other)
    plain = network()
    assert tensors_hash(plain.state_dict()) != tensors_hash(model.state_dict())


def test_one_scale_for_all_activations_of_a_batch_is_refused_with_the_kind_that_works() -> None:
    class OneScale(nn.Module):
        """Quantizes activations as torch's own dynamic int8 does: by the largest of the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.inside = network()

        def forward(self, rows: Tensor) -> Tensor:
            scale = rows.abs().amax() / 127
            return self.inside((rows / scale).round() * scale)

    with pytest.raises(sn.errors.AnswerError, match=r"int8 with one scale.*micro_batch=1"):
        sn.harden(OneScale())(X)
    alone = sn.harden(OneScale(), micro_batch=1)
    assert torch.equal(alone(X)[:1], alone(X[:1]))
