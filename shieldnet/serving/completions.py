"""Text completions: what an engine releases has passed the defenses, or nothing is released."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from shieldnet.core.checks import whole
from shieldnet.core.errors import AnswerError, ConfigError
from shieldnet.shield.logits_processor import LogitsProcessor

PROCESSED = ("processed_logprobs", "processed_logits")
"""Values of vLLM's ``logprobs_mode`` that come after the processors; its default does not."""

_OF_SAMPLING = ("temperature", "top_p", "top_k", "seed", "stop", "n", "logprobs", "max_tokens")
_OF_GENERATE = (
    *("attention_mask", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k"),
    *("num_return_sequences", "output_scores", "return_dict_in_generate", "pad_token_id"),
)
_WHY = {
    "logit_bias": "a bias per token reads scores off the tokens that it lets through",
    "sequence_bias": "a bias per token reads scores off the tokens that it lets through",
    "allowed_token_ids": "a list of tokens reads scores as a bias per token does",
    "prompt_logprobs": "log-probabilities of the prompt pass no processor",
    "output_logits": "they are what came before all processors",
    "output_hidden_states": "they pass no processor",
    "logits_processor": "the shield's is the only one",
}
_PLACES = (
    ("model_config",),
    ("llm_engine", "model_config"),
    ("vllm_config", "model_config"),
    ("llm_engine", "vllm_config", "model_config"),
)


class Completions:
    """Completes texts by an engine such as vLLM's, every token charged before the first exists.

    engine: has ``generate(prompt, params)`` and a ``model_config``, as vLLM's ``LLM``. processor:
        the class, or its full name, that the engine was given in ``logits_processors``, and that
        applies the defenses. params: makes the engine's parameters, ``vllm.SamplingParams``.
    charge: ``guard.charge``, or ``(client, tokens) -> ...`` of your own; a refusal raises.
    max_tokens: of a completion. max_logprobs: alternatives that are released of a token.

    Of a request's settings only those are passed on that read what was defended: temperature,
    top_p, top_k, seed, stop, n, logprobs, max_tokens. Others are refused, biases per token and
    log-probabilities of the prompt among them. ``n`` times ``max_tokens`` answers are charged,
    however many come.
    Errors: ConfigError when it is made, for an engine whose log-probabilities come before its
    processors (vLLM's default), or that has not got this processor; and for a setting of a request
    that is refused, before anything is charged. AnswerError for an answer with what was not asked.
    NOT promised: that the engine's processor applies the defenses; what a timing or a cache of
    prefixes tells.
    """

    def __init__(
        self,
        engine: Any,
        *,
        processor: type | str,
        params: Callable[..., Any],
        charge: Callable[[str, int], object],
        max_tokens: int = 256,
        max_logprobs: int = 5,
    ) -> None:
        require_processed(engine, processor)
        self.engine, self.params, self.charge = engine, params, charge
        self.max_tokens = whole("max_tokens", max_tokens, low=1)
        self.max_logprobs = whole("max_logprobs", max_logprobs, low=0)

    def __call__(self, prompt: str, *, client: str, **settings: Any) -> dict[str, Any]:
        """Completes one prompt. Returns the choices in the form of OpenAI's completions."""
        require_only(settings, _OF_SAMPLING)
        if not isinstance(prompt, str):
            raise ConfigError(f"Expected one prompt as text, got {type(prompt).__name__}.")
        count = whole("n", settings.get("n", 1), low=1, high=16)
        wanted = settings.get("max_tokens", self.max_tokens)
        tokens = whole("max_tokens", wanted, low=1, high=self.max_tokens)
        logprobs = settings.get("logprobs")
        if logprobs is not None:
            whole("logprobs", logprobs, low=0, high=self.max_logprobs)
        asked = self.params(**{**settings, "n": count, "max_tokens": tokens})
        # Charged before a token exists: a crash never gives a free one.
        self.charge(client, count * tokens)
        (answer,) = self.engine.generate(prompt, asked)
        if getattr(answer, "prompt_logprobs", None) is not None:
            raise AnswerError(
                "The engine gave log-probabilities of the prompt, which pass no processor; "
                "nothing was released."
            )
        outputs = answer.outputs
        if len(outputs) > count or any(len(output.token_ids) > tokens for output in outputs):
            raise AnswerError(
                f"Expected at most {count} x {tokens} tokens, for which the client was charged, "
                "got more; nothing was released."
            )
        choices = [
            {"index": place, "text": output.text, "logprobs": _released(output.logprobs, logprobs)}
            for place, output in enumerate(outputs)
        ]
        return {"object": "text_completion", "choices": choices}


def require_processed(engine: Any, processor: type | str) -> None:
    """Raises ConfigError unless an engine's log-probabilities come after this processor."""
    config = _config_of(engine)
    mode = getattr(config, "logprobs_mode", None)
    mode = getattr(mode, "value", mode)  # an enumeration in some versions
    if mode not in PROCESSED:
        raise ConfigError(
            f"Expected an engine whose log-probabilities are taken after its processors, got "
            f"logprobs_mode={mode!r}: they would show what the defenses hide. Start it with "
            f"logprobs_mode={PROCESSED[0]!r}."
        )
    held = [_name(one) for one in getattr(config, "logits_processors", None) or ()]
    if _name(processor) not in held:
        raise ConfigError(
            f"Expected the processor {_name(processor)} in the engine, got "
            f"{', '.join(held) or 'none'}. Start it with logits_processors=[...]."
        )
    if getattr(config, "logits_processor_pattern", None) is not None:
        raise ConfigError(
            "Expected an engine that takes no processors from requests, got one with "
            "logits_processor_pattern. Start it without."
        )


def require_only(settings: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    """Raises ConfigError for a setting of a request that is not on the list."""
    for name in settings:
        if name not in allowed:
            reason = f": {_WHY[name]}" if name in _WHY else ""
            raise ConfigError(
                f"The setting {name} is not accepted{reason}. Accepted are: {', '.join(allowed)}."
            )


def generate(model: Any, inputs: Any, processor: LogitsProcessor, **settings: Any) -> Any:
    """Generates by a Hugging Face model, with the shield's processor and nothing that passes it by.

    processor: ``shield.logits_processor()``. settings: of ``model.generate``, those that read what
    was defended: lengths, sampling, output_scores, return_dict_in_generate. ``output_scores``
    returns defended scores. Charge before, for each new token.
    Errors: ConfigError for other settings, ``output_logits`` among them, and for a model whose own
    generation_config asks for them.
    """
    if not isinstance(processor, LogitsProcessor):
        raise ConfigError(
            f"Expected shield.logits_processor(), got {type(processor).__name__}: without it "
            "scores are released as they are."
        )
    require_only(settings, _OF_GENERATE)
    own = model.generation_config
    for name in ("output_logits", "output_hidden_states", "output_attentions"):
        if getattr(own, name, None):
            raise ConfigError(
                f"The model's generation_config has {name}=True: they pass no processor. Set "
                f"model.generation_config.{name} = False."
            )
    if (getattr(own, "num_beams", None) or 1) > 1:
        raise ConfigError(
            "The model's generation_config has num_beams above 1: a beam's score adds up more "
            "answers than it shows. Set model.generation_config.num_beams = 1."
        )
    answer = model.generate(inputs, logits_processor=[processor], **settings)
    if not isinstance(answer, Mapping):
        return answer
    # Its other fields (keys and values of all layers among them) pass no processor.
    kept = {name: answer[name] for name in ("sequences", "scores") if name in answer}
    return type(answer)(**kept)


def _config_of(engine: Any) -> Any:
    for path in _PLACES:
        found: Any = engine
        for name in path:
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise ConfigError(
        f"Expected an engine with a model_config, as vLLM's LLM, got {type(engine).__name__}: "
        "whether its log-probabilities come after its processors cannot be seen."
    )


def _name(processor: type | str) -> str:
    """Returns the full name of a class; vLLM writes a colon before the class."""
    if isinstance(processor, str):
        return processor.replace(":", ".")
    return f"{processor.__module__}.{processor.__qualname__}"


def _released(given: Any, count: int | None) -> list[dict[str, float]] | None:
    """Keeps as many alternatives of each token as were asked, and the token itself.

    given: of each token, a dict of alternatives by number, in vLLM's form.
    """
    if count is None or given is None:
        return None
    kept = []
    for alternatives in given:
        ranked = sorted(alternatives.items(), key=lambda item: -item[1].logprob)
        first = next(iter(alternatives))  # the token that was drawn
        names = {first: alternatives[first], **dict(ranked[:count])}
        if any(math.isnan(one.logprob) for one in names.values()):
            raise AnswerError(
                "The engine gave a log-probability that is NaN; nothing was released."
            )
        kept.append({str(token): float(one.logprob) for token, one in names.items()})
    return kept
