"""Models of several heads: one line, and on the way to it messages whose lines run."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Scores for an intent and a topic, and what the test adds."""

    def __init__(self, form: str = "dict", **more: Any) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.intent, self.topic = nn.Linear(6, 4), nn.Linear(6, 3)
        self.form, self.more = form, more

    def forward(self, x: Tensor) -> Any:
        heads = {"intent": self.intent(x) * 3, "topic": self.topic(x) * 3}
        if self.form == "probabilities":
            heads = {name: head.softmax(-1) for name, head in heads.items()}
        if self.form == "images":
            heads = {name: head[..., None].expand(-1, -1, 2) for name, head in heads.items()}
        heads |= {name: of(x) for name, of in self.more.items()}
        return tuple(heads.values()) if self.form == "tuple" else heads


def line_in(refused: BaseException) -> str:
    """Takes the call out of a message."""
    (line,) = re.findall(r"sn\.(?:harden|Shield)\(model.*\)(?=[.,])", str(refused))
    call, *rest = re.split(r"\), or (?:insist|pass outputs)", str(line))
    return call + (")" if rest else "")


def run(line: str, model: nn.Module) -> sn.Shield:
    shield = eval(line, {"sn": sn, "model": model})  # noqa: S307 - a line of our own message
    assert isinstance(shield, sn.Shield)
    return shield


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"outputs": {"intent": "logits", "topics": "logits"}}, "no topics.*Do you mean topic?"),
        (
            {"outputs": {"intent": "logits", "topics": "logits"}, "drop": ["topic"]},
            "no topics, which outputs or also names; it returned intent, topic. Do you mean",
        ),
        ({"outputs": {"intent": "logits"}, "also": {"x": ()}}, "returns topic"),
        ({"outputs": {"intents": "logits", "topic": "logits"}}, "Expected to find intents"),
        ({"outputs": {"intent": "logits"}, "drop": ["topics"]}, "The model also returns topic"),
        ({"outputs": {"intent": "logits", "topics.a": "logits"}}, "no topics.a, which"),
    ],
)
def test_a_name_that_no_field_has_loses_no_head(settings, words) -> None:
    with pytest.raises(sn.errors.AnswerError, match=words) as refused:
        sn.harden(Heads(), **settings)(X)
    if "sn.harden(" in str(refused.value):
        assert list(run(line_in(refused.value), Heads())(X)) == ["intent", "topic"]


@pytest.mark.parametrize("preset", ["strict", "balanced", "open", "certified"])
def test_the_preset_stands_before_each_head(preset) -> None:
    model = Heads()
    shield = sn.harden(model, preset, outputs={"intent": "logits", "topic": "logits"})
    released = shield(X)
    for name, classes in (("intent", 4), ("topic", 3)):
        one = sn.harden(nn.Identity(), preset)
        if one.deterministic:
            assert torch.equal(released[name], one(model(X)[name]))
        assert not torch.equal(released[name], model(X)[name])
        assert released[name].shape == (8, classes)
    alone = [sn.harden(nn.Identity(), preset).cost(classes).bits for classes in (4, 3)]
    assert shield.cost().bits == pytest.approx(sum(alone))
    assert shield.settings.main == "intent"


def test_heads_of_probabilities_are_one_line_too() -> None:
    kinds = {"intent": "probabilities", "topic": "probabilities"}
    released = sn.harden(Heads("probabilities"), outputs=kinds)(X)
    for head in released.values():
        assert torch.allclose(head.sum(-1), torch.ones(8), atol=1e-5)
        assert len(head.amax(-1).unique()) <= 4


def test_one_axis_is_that_of_every_head() -> None:
    shield = sn.harden(Heads("images"), outputs={"intent": "logits", "topic": "logits"}, axis=1)
    assert shield(X)["topic"].shape == (8, 3, 2)
    assert shield.cost().bits == pytest.approx(2 * (math.log2(16) + math.log2(12)))


def test_what_the_user_says_of_a_head_stays() -> None:
    outputs = {"intent": "logits", "topic": "logits"}
    own = sn.harden(Heads(), outputs=outputs, also={"topic": (sn.Label(),)})
    assert own.settings.also["topic"] == (sn.Label(),)
    dropped = sn.harden(Heads(), outputs=outputs, drop="topic")
    assert list(dropped(X)) == ["intent"]


def test_a_file_with_a_preset_hardens_each_head(tmp_path) -> None:
    path = tmp_path / "shield.toml"
    path.write_text(
        'version = 1\npreset = "strict"\n[outputs]\nintent = "logits"\ntopic = "logits"'
    )
    wanted = sn.harden(Heads(), "strict", outputs={"intent": "logits", "topic": "logits"})
    assert sn.load_shield(Heads(), path).settings == wanted.settings


@pytest.mark.parametrize("form", ["dict", "tuple", "probabilities"])
@pytest.mark.parametrize("preset", ["balanced", "strict", None])
def test_the_first_refusal_names_the_line_that_works(form, preset) -> None:
    model = Heads(form)
    shield = sn.harden(model, preset) if preset else sn.Shield(model, sn.TopK(2), sn.Round(1))
    with pytest.raises(sn.errors.AnswerError, match="Expected to find the answer") as refused:
        shield(X)
    works = run(line_in(refused.value), model)
    released = works(X)
    assert len(released) == 2
    assert works.defenses == shield.defenses == next(iter(works.settings.also.values()))
    assert math.isfinite(works.cost().bits)
    kinds = set(works.settings.outputs.values())
    assert kinds == {"probabilities" if form == "probabilities" else "logits"}


MORE = {
    "embedding": lambda x: x * 2,
    "pooler_output": lambda x: x,
    "price": lambda x: x[:, 0],
    "loss": lambda x: x.mean(),
    "hidden_states": lambda x: (x, x),
    "last_hidden_state": lambda x: x[:, None].expand(-1, 3, -1),
}


@pytest.mark.parametrize("named", [{"intent": "logits"}, {"intent": "logits", "topic": "logits"}])
@pytest.mark.parametrize("more", [None, *MORE])
@pytest.mark.parametrize("preset", ["balanced", None])
def test_what_no_defense_covers_is_refused_with_a_line_that_works(named, more, preset) -> None:
    if more is None and len(named) == 2:
        return  # nothing is left open
    model = Heads(**({more: MORE[more]} if more else {}))
    if preset:
        shield = sn.harden(model, preset, outputs=named)
    else:
        also = {"topic": (sn.Label(),)} if len(named) == 2 else {}
        shield = sn.Shield(model, sn.Label(), outputs=named, also=also)
    with pytest.raises(sn.errors.AnswerError, match=r"also returns .*nothing was rel") as refused:
        shield(X)
    works = run(line_in(refused.value), model)
    released = works(X)
    assert {"intent", "topic"} <= set(released)
    drop = re.search(r"with drop=(\(.*?\)),", str(refused.value))
    left_out = sn.Shield(model, shield.defenses[0], outputs=named, also=shield.settings.also)
    assert drop is not None
    dropping = eval(drop[1])  # noqa: S307 - a line of our own message
    assert "intent" in sn.Shield(
        model, *left_out.defenses, outputs=named, also=left_out.settings.also, drop=dropping
    )(X)


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_a_head_that_no_preset_fits_is_refused_with_words_that_work(kind) -> None:
    outputs = {"intent": "logits", "topic": "logits", "more": kind}
    with pytest.raises(sn.errors.ConfigError, match="The field more has no defenses") as refused:
        sn.harden(Heads(), outputs=outputs)
    (also,) = re.findall(r"also=(\{.*\})(?: with its own range and step)?, or", str(refused.value))
    shield = sn.harden(
        Heads(more=lambda x: x),
        outputs=outputs,
        also=eval(also, {"sn": sn}),  # noqa: S307 - a line of our own message
    )
    assert set(shield(X)) == {"intent", "topic", "more"}
    (drop,) = re.findall(r"drop=(\(.*?\))\.", str(refused.value))
    shield = sn.harden(Heads(more=lambda x: x), outputs=outputs, drop=eval(drop))  # noqa: S307 - ours
    assert set(shield(X)) == {"intent", "topic"}


@pytest.mark.parametrize(
    ("defense", "kind"),
    [(sn.Label(), "logits"), (sn.Sign(), "embeddings"), (sn.RoundTo(1.0), "values")],
)
def test_a_missing_kind_is_named_by_what_the_defenses_read(defense, kind) -> None:
    words = rf"kind of topic beside its defenses: outputs=\{{'intent': 'logits', 'topic': '{kind}'"
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.harden(Heads(), outputs={"intent": "logits"}, also={"topic": (defense,)})
    with pytest.raises(sn.errors.ConfigError, match="the answer's own name for NAME"):
        sn.harden(Heads(), also={"topic": (defense,)})


def test_a_head_of_probabilities_called_logits_is_refused_by_name() -> None:
    shield = sn.harden(
        Heads(more=lambda x: x.softmax(-1)),
        outputs={"intent": "logits", "topic": "logits", "more": "logits"},
    )
    with pytest.raises(sn.errors.AnswerError, match=r"seem to be probabilities"):
        shield(X)
