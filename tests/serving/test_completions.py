"""An engine that would pass the defenses by is refused before it starts, and so is a request."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import shieldnet as sn
from shieldnet.core.errors import AnswerError, BudgetExceeded, ConfigError
from shieldnet.serving.completions import Completions, generate

WORDS = 12
DEFENSES = (sn.TopK(3), sn.Round(1))


class Shielded:
    """Stands for the class that an engine is given: applies the defenses to scores."""

    processor = sn.LogitsProcessor(*DEFENSES)


@dataclass
class Logprob:
    logprob: float


@dataclass
class Engine:
    """Answers as vLLM's ``LLM`` does: its log-probabilities by its mode, greedy tokens."""

    logprobs_mode: Any = "raw_logprobs"
    logits_processors: list[Any] | None = field(default_factory=lambda: [Shielded])
    logits_processor_pattern: str | None = None
    prompt_logprobs: Any = None
    more: int = 0
    asked: int = 0

    @property
    def llm_engine(self) -> SimpleNamespace:
        return SimpleNamespace(model_config=self)

    def generate(self, prompt: str, params: SimpleNamespace) -> list[SimpleNamespace]:
        self.asked += 1
        scores = torch.randn(1, WORDS, generator=torch.Generator().manual_seed(len(prompt)))
        defended = Shielded.processor(torch.zeros(1, 1, dtype=torch.int64), scores)
        shown = defended if "processed" in str(self.logprobs_mode) else scores
        best, logprobs = int(defended.argmax()), shown.log_softmax(-1)[0].tolist()
        order = [best, *sorted(range(WORDS), key=lambda word: -logprobs[word])]
        row = {word: Logprob(logprobs[word]) for word in order[: 1 + (params.logprobs or 0)]}
        tokens = params.max_tokens + self.more
        output = SimpleNamespace(
            text="a" * tokens,
            token_ids=[best] * tokens,
            logprobs=None if params.logprobs is None else [row] * tokens,
        )
        answer = SimpleNamespace(prompt_logprobs=self.prompt_logprobs, outputs=[output] * params.n)
        return [answer]


def params(**settings: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"logprobs": None, **settings})


def completions(engine: Engine, charge=lambda client, tokens: None, **settings) -> Completions:
    settings = {"processor": Shielded, "params": params, **settings}
    return Completions(engine, charge=charge, **settings)


def test_released_log_probabilities_are_defended() -> None:
    complete = completions(Engine("processed_logprobs"))
    (choice,) = complete("the", client="a", max_tokens=2, logprobs=3)["choices"]
    assert choice["text"] == "aa"
    for row in choice["logprobs"]:
        shares = torch.tensor(list(row.values())).exp() * 10
        assert torch.allclose(shares, shares.round(), atol=1e-4)  # one decimal
    assert complete("the", client="a")["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits", None])
def test_an_engine_that_shows_scores_before_its_processors_is_refused(mode) -> None:
    with pytest.raises(ConfigError, match=r"Start it with logprobs_mode='processed_logprobs'"):
        completions(Engine(mode))


@pytest.mark.parametrize(
    "mode", ["processed_logprobs", "processed_logits", SimpleNamespace(value="processed_logits")]
)
def test_an_engine_that_shows_scores_after_its_processors_starts(mode) -> None:
    assert completions(Engine(mode))


def test_an_engine_without_this_processor_is_refused() -> None:
    for held in (None, [], ["other.Processor"]):
        with pytest.raises(ConfigError, match=r"Expected the processor test_completions.Shielded"):
            completions(Engine("processed_logprobs", held))
    named = Engine("processed_logprobs", ["test_completions:Shielded"])
    assert completions(named, processor="test_completions.Shielded")
    with pytest.raises(ConfigError, match="takes no processors from requests"):
        completions(Engine("processed_logprobs", logits_processor_pattern=".*"))
    with pytest.raises(ConfigError, match="with a model_config, as vLLM's LLM, got object"):
        completions(object())


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("logit_bias", "a bias per token"),
        ("prompt_logprobs", "pass no processor"),
        ("allowed_token_ids", "as a bias per token"),
        ("structured_outputs", "not accepted"),
    ],
)
def test_a_request_that_passes_the_defenses_by_is_refused_and_not_charged(setting, reason) -> None:
    engine, charged = Engine("processed_logprobs"), []
    complete = completions(engine, charge=lambda *told: charged.append(told))
    with pytest.raises(ConfigError, match=reason):
        complete("the", client="a", **{setting: {1: 100.0}})
    for settings in ({"logprobs": 6}, {"n": 0}, {"max_tokens": 10**6}):
        with pytest.raises(ConfigError, match="Expected"):
            complete("the", client="a", **settings)
    assert charged == []
    assert engine.asked == 0


def test_all_tokens_are_charged_before_the_first_exists() -> None:
    engine, charged = Engine("processed_logprobs"), []

    def charge(client: str, tokens: int) -> None:
        assert engine.asked == 0
        charged.append((client, tokens))
        if tokens > 10:
            raise BudgetExceeded("no more")

    complete = completions(engine, charge=charge)
    with pytest.raises(BudgetExceeded):
        complete("the", client="alice", n=3, max_tokens=4)
    assert engine.asked == 0
    assert len(complete("the", client="alice", n=2, max_tokens=4)["choices"]) == 2
    assert charged == [("alice", 12), ("alice", 8)]


def test_an_answer_of_more_than_was_charged_is_not_released() -> None:
    with pytest.raises(AnswerError, match="log-probabilities of the prompt"):
        completions(Engine("processed_logprobs", prompt_logprobs=[{}]))("the", client="a")
    with pytest.raises(AnswerError, match="at most 1 x 4 tokens"):
        completions(Engine("processed_logprobs", more=1))("the", client="a", max_tokens=4)


@pytest.fixture(scope="module")
def writer() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def test_hugging_face_releases_defended_scores_alone(writer) -> None:
    processor = sn.LogitsProcessor(*DEFENSES)
    prompt = torch.tensor([[1, 2]])
    settings = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    answer = generate(writer, prompt, processor, **settings)
    assert set(answer) == {"sequences", "scores"}  # no keys and values of any layer
    scores = writer(prompt).logits[:, -1].detach()
    assert torch.equal(answer.scores[0], processor(prompt, scores))
    assert not torch.allclose(answer.scores[0], scores)
    for name in ("output_logits", "output_hidden_states", "sequence_bias", "num_beams"):
        with pytest.raises(ConfigError, match=f"The setting {name} is not accepted"):
            generate(writer, prompt, processor, **settings, **{name: True})
    with pytest.raises(ConfigError, match="shield.logits_processor"):
        generate(writer, prompt, None, **settings)
    for name, value in {"output_logits": True, "num_beams": 2}.items():
        before = getattr(writer.generation_config, name, None)
        setattr(writer.generation_config, name, value)
        with pytest.raises(ConfigError, match=f"generation_config has {name}"):
            generate(writer, prompt, processor, **settings)
        setattr(writer.generation_config, name, before)
