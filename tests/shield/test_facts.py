"""What a shield gives of its model's own attributes, and what it refuses."""

import copy
import functools
import os
import pickle
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "the", "was")
TEXTS = ["the film was good", "the plot was bad", "good", "the the the bad film"]


class Sneaky(str):
    """A word that brings the model along."""

    __slots__ = ("model",)


class Talkative(nn.Linear):
    """A model with an attribute of every sort."""

    classes_of: ClassVar[dict[int, str]] = {0: "cat", 1: "dog"}
    reads = "pixels"
    sizes: ClassVar[list[int]] = [8, 8]

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.threshold = 0.5
        self.version = (1, "b", None)
        self.kind_of = torch.float32
        self.last: Any = None
        self.held = {"weights": torch.ones(3)}
        self.mean = torch.zeros(3)
        self.asks = self.forward
        self.ask = {"how": self.forward}
        self.partial = functools.partial(nn.Linear.forward, self)
        self.settings_of = SimpleNamespace(width=8)
        self.reaching = SimpleNamespace(model=self.forward)
        self.sneaky = Sneaky("word")
        self.deep: list[Any] = []
        self.deep.append(self.deep)
        self.register_buffer("buffer", torch.ones(1))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def winner(self) -> int:
        return int(self(torch.zeros(1, 6)).argmax())

    @functools.cached_property
    def certainty(self) -> float:
        return float(self(torch.zeros(1, 6)).detach().max())

    @property
    def inner(self) -> nn.Module:
        return self

    @classmethod
    def made(cls) -> "Talkative":
        return cls()

    @staticmethod
    def static(x: Tensor) -> Tensor:
        return x

    def __getattr__(self, name: str) -> Any:
        if name == "dynamic":
            return 3
        return super().__getattr__(name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("classes_of", {0: "cat", 1: "dog"}),  # plain data of the class
        ("reads", "pixels"),
        ("sizes", [8, 8]),
        ("threshold", 0.5),  # plain data of the model
        ("version", (1, "b", None)),
        ("in_features", 6),
        ("kind_of", torch.float32),
        ("settings_of", SimpleNamespace(width=8)),  # a plain holder of plain data
        ("device", torch.device("cpu")),  # computed, but only ever a place or a type
        ("dtype", torch.float32),
    ],
)
def test_plain_facts_of_the_model_are_given(name, wanted) -> None:
    shield = sn.harden(Talkative())
    assert getattr(shield, name) == wanted
    assert getattr(copy.deepcopy(shield), name) == wanted
    with torch.no_grad():
        shield(torch.randn(3, 6))
    assert getattr(shield, name) == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("asks", "Call shield"),  # a bound method in an attribute
        ("partial", "Call shield"),
        ("inner", "Call shield"),  # the model itself, by a property
        ("made", "Call shield"),
        ("static", "Call shield"),
        ("ask", "this is dict"),  # a method in a dict
        ("held", "this is dict"),  # tensors in a dict
        ("reaching", "this is SimpleNamespace"),
        ("sneaky", "this is Sneaky"),
        ("deep", "this is list"),
        ("mean", "this is Tensor"),
        ("weight", "this is Tensor"),
        ("buffer", "this is Tensor"),
        ("winner", "this is int, computed"),
        ("certainty", "this is float, computed"),
        ("dynamic", "this is int, computed"),
    ],
)
def test_what_could_answer_is_refused(name, words) -> None:
    shield = sn.harden(Talkative())
    for _ in range(2):  # a cached property is stored by the first look
        with pytest.raises(
            sn.errors.BypassError, match=f"shield.{name} is blocked.*({words}|changed)"
        ):
            getattr(shield, name)
    assert not hasattr(shield, name)


@pytest.mark.parametrize("form", [float, str, lambda x: [x], lambda x: {"last": {"max": x}}])
def test_a_number_that_the_model_keeps_of_an_answer_is_refused(form) -> None:
    class Keeps(Talkative):
        last_of_all: ClassVar[Any] = 0.0

        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            self.last = self.newly = type(self).last_of_all = form(float(scores.max()))
            return scores

    shield = sn.harden(Keeps())
    assert shield.last is None
    shield(torch.randn(3, 6))
    for name in ("last", "newly", "last_of_all"):
        with pytest.raises(sn.errors.BypassError, match=r"changed since.*shield.settings"):
            getattr(shield, name)
    assert shield.threshold == 0.5


def test_an_attribute_that_nobody_has_is_no_bypass() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'") as raised:
        _ = sn.harden(Talkative()).nothing
    assert not isinstance(raised.value, sn.errors.BypassError)


@pytest.fixture(scope="module")
def transformers():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


@pytest.fixture
def tokenizer(transformers, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return transformers.BertTokenizer(str(tmp_path / "vocab.txt"))


def bert_of(transformers, **settings: Any) -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=len(WORDS), intermediate_size=32, **sizes, **settings
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    nn.init.normal_(model.classifier.weight)
    return model


class TestPipelines:
    """What ``transformers.pipeline`` releases is what the shield says."""

    @pytest.mark.parametrize("preset", ["strict", "balanced", "open"])
    def test_text_classification_gives_the_shields_answers(
        self, preset, transformers, tokenizer
    ) -> None:
        model = bert_of(transformers, num_labels=3, id2label={0: "NEG", 1: "MID", 2: "POS"})
        shield = sn.harden(model, preset)
        pipe = transformers.pipeline("text-classification", model=shield, tokenizer=tokenizer)
        for batch in (1, 3):
            said = pipe(TEXTS, batch_size=batch, top_k=None)
            for text, classes in zip(TEXTS, said, strict=True):
                released = shield(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
                bare = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
                by_name = {line["label"]: line["score"] for line in classes}
                scores = torch.tensor([by_name[name] for name in ("NEG", "MID", "POS")])
                assert torch.allclose(scores, released, atol=1e-6)
                assert not torch.allclose(scores, bare, atol=1e-3)
                assert scores.argmax() == bare.argmax()
        assert "dtype" in repr(pipe)

    def test_many_labels_of_yes_and_no(self, transformers, tokenizer) -> None:
        model = bert_of(transformers, num_labels=3, problem_type="multi_label_classification")
        shield = sn.harden(model, outputs="binary_logits")
        pipe = transformers.pipeline("text-classification", model=shield, tokenizer=tokenizer)
        (said,) = pipe(TEXTS[:1], top_k=None)
        released = shield(**tokenizer(TEXTS[0], return_tensors="pt")).logits.sigmoid()[0]
        assert sorted(line["score"] for line in said) == pytest.approx(sorted(released.tolist()))

    def test_images_are_classified(self, transformers) -> None:
        image = pytest.importorskip("PIL.Image").new("RGB", (12, 12), (200, 30, 90))
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.ViTConfig(
            image_size=8, patch_size=4, intermediate_size=32, num_labels=4, **sizes
        )
        shield = sn.harden(transformers.ViTForImageClassification(config).eval())
        processor = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8})
        pipe = transformers.pipeline(
            "image-classification", model=shield, image_processor=processor
        )
        said = {line["label"]: line["score"] for line in pipe(image, top_k=4)}
        released = shield(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]
        named = [said[config.id2label[number]] for number in range(4)]
        assert torch.allclose(torch.tensor(named), released, atol=1e-6)

    def test_audio_is_classified(self, transformers) -> None:
        config = transformers.Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8,),
            conv_kernel=(10,),
            conv_stride=(5,),
            num_feat_extract_layers=1,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            num_labels=3,
        )
        shield = sn.harden(transformers.Wav2Vec2ForSequenceClassification(config).eval())
        extractor = transformers.Wav2Vec2FeatureExtractor()
        pipe = transformers.pipeline(
            "audio-classification", model=shield, feature_extractor=extractor
        )
        wave = torch.randn(4000, generator=torch.Generator().manual_seed(0)).numpy()
        said = {line["label"]: line["score"] for line in pipe(wave, top_k=3)}
        inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
        released = shield(**inputs).logits.softmax(-1)[0]
        named = [said[config.id2label[number]] for number in range(3)]
        assert torch.allclose(torch.tensor(named), released, atol=1e-6)

    def test_a_text_is_not_written_around_the_shield(self, transformers, tokenizer) -> None:
        ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        config = transformers.GPT2Config(
            vocab_size=len(WORDS), n_positions=64, n_embd=16, n_layer=1, n_head=2, **ids
        )
        shield = sn.harden(transformers.GPT2LMHeadModel(config).eval(), axis=-1)
        with pytest.raises(sn.errors.BypassError, match="is blocked.*shield.logits_processor"):
            transformers.pipeline("text-generation", model=shield, tokenizer=tokenizer)


class TestHuggingFaceFacts:
    FACTS = (
        *("device", "dtype", "config", "name_or_path", "main_input_name", "input_modalities"),
        *("base_model_prefix", "num_labels", "can_generate"),
    )
    WAYS_AROUND = (
        *("base_model", "bert", "classifier", "get_input_embeddings", "save_pretrained"),
        *("from_pretrained", "get_output_embeddings", "dummy_inputs", "config_class", "dropout"),
    )

    def test_facts_pass_and_ways_around_do_not(self, transformers) -> None:
        shield = sn.harden(bert_of(transformers))
        for name in self.FACTS:
            assert hasattr(shield, name), name
        for name in self.WAYS_AROUND:
            with pytest.raises(sn.errors.BypassError, match=rf"shield.model.{name}"):
                getattr(shield, name)
        compiled = sn.harden(torch.compile(shield.model, backend="eager"))
        assert compiled.config is shield.config
        assert pickle.loads(pickle.dumps(shield)).config.to_dict() == shield.config.to_dict()  # noqa: S301 - our own bytes

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_nothing_that_passes_holds_a_tensor_a_module_or_a_function_of_the_model(
        self, transformers
    ) -> None:
        """All that there is, by any name: whoever asks for it gets data or a refusal."""
        shield = sn.harden(bert_of(transformers))
        given = set()
        for name in dir(shield.model):
            if name.startswith("_") or name in dir(shield):
                continue
            if hasattr(shield, name):
                value = getattr(shield, name)
                given.add(name)
                assert name == "can_generate" or not callable(value)
                assert not isinstance(value, Tensor | nn.Module)
        assert set(self.FACTS) <= given

    @pytest.mark.parametrize("more", ["callable", "tensor", "module", "answer"])
    def test_a_config_that_holds_more_than_plain_data_is_refused(self, more, transformers) -> None:
        model = bert_of(transformers)
        if more != "answer":
            held = {"callable": model.forward, "tensor": torch.ones(2), "module": model}[more]
            model.config.more = {"inside": held}
        shield = sn.harden(model)
        if more == "answer":
            model.config.more = 0.7
        words = "changed since" if more == "answer" else "this is BertConfig"
        with pytest.raises(sn.errors.BypassError, match=words):
            _ = shield.config
