"""A shield is invisible where it can be: compilers, devices, wrappers, threads, other libraries."""

import copy
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

CHAINS = [
    (sn.Label(),),
    (sn.Confidence(4),),
    (sn.TopK(3), sn.Round(1)),
    (sn.ClipNorm(10.0), sn.GaussianNoise(2.0)),
    (sn.RandomizedResponse(2.0, bins=4),),
    (sn.PermuteAndFlip(6.0),),
]


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5)
        )
    return layers.eval()


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_it_compiles_into_one_graph_and_still_refuses(chain, model, rows) -> None:
    """aot_eager traces all that Inductor would, without the minutes of its C++ compiler."""
    torch._dynamo.reset()
    shield = sn.Shield(model, *chain)
    compiled = torch.compile(shield, fullgraph=True, backend="aot_eager")
    answers = compiled(rows)
    if shield.deterministic:
        assert torch.allclose(answers, shield(rows), atol=1e-5)
    else:
        assert not torch.equal(answers, compiled(rows)), "noise is drawn at every call"
    assert shield.cost().bits < float("inf")
    broken = rows.clone()
    broken[3, 0] = float("nan")
    with pytest.raises(sn.errors.AnswerError, match="NaN or Inf in row 3 of 32"):
        compiled(broken)


def test_probabilities_are_checked_in_a_compiled_graph_too() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        sn.harden(nn.Identity(), outputs="probabilities"), fullgraph=True, backend="aot_eager"
    )
    assert compiled(torch.full((2, 4), 0.25)).shape == (2, 4)
    with pytest.raises(
        sn.errors.AnswerError, match="Row 0 of 2 is not a distribution: it sums to 4"
    ):
        compiled(torch.ones(2, 4))


@pytest.mark.parametrize("chain", CHAINS[:3], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_answer_in_float32(chain, dtype, model, rows) -> None:
    shield = sn.Shield(model, *chain)
    with torch.autocast("cpu", dtype=dtype):
        low = model(rows)
        answers = shield(rows)
    assert answers.dtype == torch.float32
    assert torch.equal(answers, sn.Shield(nn.Identity(), *chain)(low))
    half = copy.deepcopy(shield).to(torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16
    assert half(rows.bfloat16()).dtype == torch.float32


def test_data_parallel_and_distributed_answer_as_one(model, rows, tmp_path) -> None:
    shield = sn.harden(model)
    wanted = shield(rows)
    assert torch.equal(nn.DataParallel(shield)(rows), wanted)
    assert torch.equal(sn.harden(nn.DataParallel(model))(rows), wanted)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        assert torch.equal(sn.harden(parallel)(rows), wanted)
        assert torch.equal(nn.parallel.DistributedDataParallel(shield)(rows), wanted)
    finally:
        torch.distributed.destroy_process_group()


class _Two(nn.Linear):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x), "hidden": x}


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301 - our own bytes
def test_structured_shields_are_copied_with_all_they_know(copy_of) -> None:
    shield = sn.Shield(
        _Two(6, 4),
        sn.TopK(2),
        sn.Round(1),
        outputs={"logits": "logits", "hidden": "embeddings"},
        also={"hidden": (sn.Sign(),)},
    )
    x = torch.randn(4, 6)
    released = shield(x)
    again = copy_of(shield)
    assert torch.equal(again(x)["logits"], released["logits"])
    assert again.cost() == shield.cost()
    assert repr(again) == repr(shield)


def test_a_child_called_model_keeps_its_keys_in_both_directions() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    bare = Holder()
    shield = sn.harden(Holder())
    assert list(shield.state_dict()) == list(bare.state_dict()) == ["model.weight", "model.bias"]
    shield.load_state_dict(bare.state_dict(), strict=True)
    bare.load_state_dict(shield.state_dict(), strict=True)
    outer = nn.Sequential(sn.harden(Holder()))
    assert list(outer.state_dict()) == ["0.model.weight", "0.model.bias"]
    outer.load_state_dict(outer.state_dict(), strict=True)


def test_hooks_of_the_model_run_and_hooks_of_the_shield_see_what_is_released(model, rows) -> None:
    seen: dict[str, Tensor] = {}
    model.register_forward_hook(lambda _, __, out: seen.update(model=out))
    shield = sn.harden(model)
    shield.register_forward_hook(lambda _, __, out: seen.update(shield=out))
    answers = shield(rows)
    assert torch.equal(seen["shield"], answers)
    assert not torch.equal(seen["model"], answers)


def test_wrapping_changes_no_mode_and_train_and_eval_are_the_models(model) -> None:
    model.train()
    shield = sn.harden(model)
    assert model.training
    assert shield.training
    shield.eval()
    assert not model.training


def test_many_threads_at_many_sizes_get_the_answers_of_one() -> None:
    shield = sn.harden(nn.Identity(), "open", axis=1)
    inputs = [torch.randn(2, 5, size, size) for size in range(1, 9)] * 4
    wanted = [shield(one) for one in inputs]
    found: list[Tensor | None] = [None] * len(inputs)

    def ask(place: int) -> None:
        found[place] = shield(inputs[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_an_input_on_another_device_is_named(model) -> None:
    with pytest.raises(
        sn.errors.AnswerError, match="The input is on meta, the model on cpu: move one"
    ):
        sn.harden(model)(torch.zeros(2, 6, device="meta"))


class TestAround:
    @pytest.fixture
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(0)
        x = generator.normal(size=(200, 4))
        return x, (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 1)

    def test_a_pipeline_of_scikit_learn_answers_with_arrays(self, table) -> None:
        from sklearn.linear_model import LogisticRegression

        x, y = table
        classifier = LogisticRegression().fit(x, y)
        shield = sn.Shield.around(classifier.predict_proba, sn.Confidence(4))
        answers = shield(x)
        assert isinstance(answers, np.ndarray)
        assert answers.dtype == np.float64
        assert (answers.argmax(1) == classifier.predict(x)).all()
        assert len(np.unique(answers.max(1).round(6))) <= 4
        assert shield(torch.as_tensor(x)).equal(torch.as_tensor(answers))
        assert "Around(LogisticRegression.predict_proba)" in repr(shield)
        assert sn.Shield.around(classifier.predict_proba, release="labels")(x).shape == (200,)

    def test_an_audit_takes_it_like_any_model(self, table) -> None:
        from sklearn.linear_model import LogisticRegression

        x, y = table
        classifier = LogisticRegression().fit(x[:60], y[:60])
        shield = sn.Shield.around(classifier.predict_proba, sn.Label())
        tensors = torch.as_tensor(x), torch.as_tensor(y)
        report = sn.audit(
            shield,
            members=tuple(one[:60] for one in tensors),
            nonmembers=tuple(one[60:120] for one in tensors),
            auxiliary=tuple(one[120:] for one in tensors),
        )
        assert report["shield"]["agreement"].value == 1
        assert report["bare"]["inversion"].value > report["shield"]["inversion"].value

    def test_a_session_of_onnx_runtime_is_a_function_of_arrays(self, tmp_path) -> None:
        onnx = pytest.importorskip("onnx")
        runtime = pytest.importorskip("onnxruntime")
        weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["logits"])],
            "linear",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 4])],
            [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None, 3])],
            [onnx.numpy_helper.from_array(weight, "w")],
        )
        file = tmp_path / "linear.onnx"
        onnx.save(
            onnx.helper.make_model(
                graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
            ),
            file,
        )
        session = runtime.InferenceSession(file)
        shield = sn.Shield.around(
            lambda x: session.run(None, {"x": x}), sn.Label(), outputs="logits"
        )
        x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        (answers,) = shield(x)
        assert answers.dtype == np.float32
        assert (answers.argmax(1) == (x @ weight).argmax(1)).all()

    def test_what_is_no_function_or_no_array_is_refused(self) -> None:
        with pytest.raises(
            sn.errors.ConfigError, match="Expected a function of arrays, got Linear"
        ):
            sn.Shield.around(nn.Linear(2, 2))
        with pytest.raises(sn.errors.ConfigError, match="Expected a function of arrays, got int"):
            sn.Shield.around(3)
        from sklearn.linear_model import LogisticRegression

        with pytest.raises(
            sn.errors.ConfigError, match=r"Pass its method: .*estimator.predict_proba"
        ):
            sn.Shield.around(LogisticRegression())
        with pytest.raises(sn.errors.ConfigError, match="got LogisticRegression, which is not fit"):
            sn.Shield(LogisticRegression())
        with pytest.raises(
            sn.errors.AnswerError, match="got torch.int64. Shield the function that returns scores"
        ):
            sn.Shield.around(lambda x: np.zeros((2, 3), int))(np.zeros((2, 3)))
        with pytest.raises(sn.errors.AnswerError, match="function to return numbers, got <U4"):
            sn.Shield.around(lambda x: np.array(["spam", "ham"]))(np.zeros((2, 3)))


@pytest.fixture(scope="module")
def transformers():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bert(transformers) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def gpt(transformers) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


class TestHuggingFace:
    @pytest.fixture
    def tokens(self) -> Tensor:
        return torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(0))

    def test_a_classifier_gives_its_own_type_back(self, bert, tokens) -> None:
        shield = sn.harden(bert)
        bare, released = bert(input_ids=tokens), shield(input_ids=tokens)
        assert type(released) is type(bare)
        assert torch.equal(released.logits.argmax(-1), bare.logits.argmax(-1))
        assert released.loss is None
        assert not released.logits.requires_grad
        assert released[0] is released.logits
        in_tuple = shield(input_ids=tokens, return_dict=False)
        assert torch.equal(in_tuple[0], released.logits)

    def test_hidden_states_attentions_and_losses_are_refused_or_dropped(self, bert, tokens) -> None:
        shield = sn.harden(bert)
        with pytest.raises(
            sn.errors.AnswerError, match=r"also returns hidden_states \(Tensor x 3\)"
        ):
            shield(input_ids=tokens, output_hidden_states=True)
        with pytest.raises(sn.errors.AnswerError, match=r"also returns loss \(Tensor\)"):
            shield(input_ids=tokens, labels=torch.tensor([0, 1]))
        dropped = sn.harden(bert, drop=("hidden_states", "loss"))
        released = dropped(input_ids=tokens, output_hidden_states=True, labels=torch.tensor([0, 1]))
        assert released.hidden_states is None
        assert released.loss is None
        assert list(released) == ["logits"]

    def test_a_language_model_needs_its_axis_and_loses_its_cache(self, gpt, tokens) -> None:
        with pytest.raises(
            sn.errors.AnswerError, match=r"also returns past_key_values \(DynamicCache\)"
        ):
            sn.harden(gpt, axis=-1)(input_ids=tokens)
        with pytest.raises(sn.errors.AnswerError, match="axis=-1 for a language model"):
            sn.harden(gpt, drop=("past_key_values",))(input_ids=tokens)
        shield = sn.Shield(gpt, sn.TopK(5), sn.Round(2), axis=-1, drop=("past_key_values",))
        released = shield(input_ids=tokens)
        assert released.logits.shape == (2, 7, 40)
        assert "past_key_values" not in released
        one = sn.Shield(gpt, *shield.defenses).cost(40)
        assert shield.cost().bits == pytest.approx(7 * one.bits)

    def test_generate_is_refused_and_the_processor_shapes_every_token(
        self, gpt, tokens, transformers
    ) -> None:
        shield = sn.Shield(gpt, sn.TopK(5), sn.Round(2), axis=-1, drop=("past_key_values",))
        with pytest.raises(
            sn.errors.BypassError, match="logits_processor=.shield.logits_processor"
        ):
            shield.generate(tokens)
        result = gpt.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=3,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            logits_processor=transformers.LogitsProcessorList([shield.logits_processor()]),
        )
        plain = gpt.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=3, do_sample=False
        )
        assert torch.equal(result.sequences, plain), "the winner stays the winner"
        for scores in result.scores:
            ticks = scores.exp()[scores > -torch.inf] * 100
            assert torch.allclose(ticks, ticks.round(), atol=1e-3)
            assert all(int((row > -torch.inf).sum()) == 5 for row in scores)

    def test_a_processor_keeps_what_was_forbidden_and_refuses_what_is_broken(self) -> None:
        process = sn.LogitsProcessor(sn.TopK(2), sn.Round(1), forbidden=[1])
        scores = torch.tensor([[1.0, -torch.inf, 3.0, 2.0, 0.5]])
        given = process(torch.zeros(1, 1, dtype=torch.long), scores)
        chances = given.softmax(-1)[0]
        assert chances[2] > chances[3] > 0
        assert chances[[0, 1, 4]].tolist() == [0, 0, 0], "neither forbidden nor unnamed words"
        flat = sn.LogitsProcessor(sn.Round(1), forbidden=[1])(
            torch.zeros(1, 1), torch.tensor([[0.0, -torch.inf]])
        )
        assert flat.softmax(-1).tolist() == [[1, 0]]
        for _ in range(20):
            drawn = sn.LogitsProcessor(sn.RandomizedResponse(0.1), forbidden=[1])
            answers = drawn(torch.zeros(1, 1), scores)
            assert torch.isfinite(answers.softmax(-1)).all(), "a forbidden word was drawn"
            assert answers[0, 1] == -torch.inf
        noisy = sn.LogitsProcessor(sn.ClipNorm(10.0), sn.GaussianNoise(0.1), forbidden=[3])
        answers = noisy(torch.zeros(1, 1), torch.tensor([[5.0, 3.0, 0.0, -torch.inf]]))
        assert answers[0, 0] > answers[0, 1] + 1 > answers[0, 2] + 2, "forbidden words take no room"
        with pytest.raises(sn.errors.AnswerError, match="NaN or Inf"):
            process(torch.zeros(1, 1), torch.tensor([[torch.nan, 1.0]]))
        with pytest.raises(sn.errors.ConfigError, match="Expected a shield of logits"):
            sn.harden(nn.Linear(2, 2), outputs="probabilities").logits_processor()


def test_a_keras_model_on_the_torch_backend_is_a_module() -> None:
    """In a process of its own: Keras picks its backend once and for all."""
    import subprocess
    import sys

    program = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras, torch, shieldnet as sn
model = keras.Sequential([keras.layers.Input((6,)), keras.layers.BatchNormalization(),
    keras.layers.Dropout(.5), keras.layers.Dense(4, activation="softmax")])
x = torch.randn(8, 6)
shield = sn.harden(model, outputs="probabilities")
answers = shield(x)
assert torch.equal(answers.argmax(-1), model(x).argmax(-1)) and not answers.requires_grad
assert torch.equal(answers, shield(x))
assert list(shield.state_dict()) == list(model.state_dict())
try:
    shield(x, training=True)
except sn.errors.AnswerError as refused:
    print(refused)
try:
    shield.predict(x)
except sn.errors.BypassError as refused:
    print(refused)
"""
    pytest.importorskip("keras")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "shield.predict is blocked" in done.stdout
    assert "training=True would make answers random" in done.stdout
