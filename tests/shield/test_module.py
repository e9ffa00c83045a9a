import copy
import gc
import math
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

import shieldnet as sn
from shieldnet.outputs.layout import ZERO_LOGIT

CHAINS = [
    (sn.Label(),),
    (sn.Confidence(4),),
    (sn.TopK(3), sn.Round(1)),
    (sn.Round(2),),
    (sn.TopK(2),),
    (sn.Temperature(2.0), sn.Round(3)),
]


class Fixed(nn.Module):
    """Returns what it was given: the test decides what the model says."""

    def __init__(self, output: object = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return x if self.output is None else self.output


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_softmax_of_the_logits_given_back_is_the_released_distribution(chain, scores) -> None:
    answers = sn.Shield(Fixed(), *chain)(scores)
    released = sn.Shield(Fixed(), *chain, release="probabilities")(scores)
    assert torch.isfinite(answers).all()
    assert torch.allclose(answers.softmax(-1), released, atol=1e-6)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_winner_stays_the_winner(chain, scores) -> None:
    assert torch.equal(sn.Shield(Fixed(), *chain)(scores).argmax(-1), scores.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_released_zero_is_a_zero_in_every_float_type(dtype) -> None:
    answers = sn.Shield(Fixed(), sn.Label())(torch.tensor([[3.0, 1.0, 0.0]]))
    assert answers[0, 1] == ZERO_LOGIT
    assert answers.to(dtype).softmax(-1).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_it_is_defended(dtype, scores) -> None:
    shield = sn.Shield(Fixed(), sn.TopK(3), sn.Round(1))
    assert torch.equal(shield(scores.to(dtype)), shield(scores.to(dtype).float()))


def test_the_chain_shows_what_was_inserted() -> None:
    shield = sn.Shield(nn.Linear(2, 3), sn.TopK(2), sn.Round(1))
    assert shield.describe() == (
        "Linear -> [Softmax()] -> TopK(k=2, or_all=False) -> Round(digits=1) -> [Log()]"
    )
    assert "cost: known after the first answer" in repr(shield)
    shield(torch.zeros(1, 2))
    assert "bits, mu inf per answer" in repr(shield)


def test_models_of_probabilities_give_probabilities_back(scores) -> None:
    shield = sn.Shield(Fixed(), sn.Round(1), outputs="probabilities")
    assert torch.allclose(shield(scores.softmax(-1)).sum(-1), torch.ones(len(scores)))


def test_labels_are_released_as_indices(scores) -> None:
    shield = sn.harden(Fixed(), "strict", release="labels")
    answers = shield(scores)
    assert torch.equal(answers, scores.argmax(-1))
    assert torch.equal(shield.distribution(answers).argmax(-1), scores.argmax(-1))
    assert shield.cost().bits == pytest.approx(math.log2(10))


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ((sn.Round(1), sn.TopK(3)), r"Put TopK\(k=3, or_all=False\) before Round\(digits=1\)"),
        ((sn.GaussianNoise(1.0), sn.ClipNorm(1.0)), r"Put ClipNorm\(bound=1.0\) before Gaussian"),
        ((sn.Round(1), sn.Temperature(2.0)), r"Temperature\(.*\) reads logits, but .* gives prob"),
        ((sn.Label(), sn.ClipNorm(1.0)), r"Put ClipNorm\(bound=1.0\) before Label\(\)"),
        ((sn.Round(1), sn.Label(), sn.GaussianNoise(1.0)), r"but Label\(\) gives probabilities"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_the_mend(chain, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.Shield(Fixed(), *chain)


def test_noise_on_a_model_of_probabilities_is_refused_with_the_mend() -> None:
    with pytest.raises(sn.errors.ConfigError, match="outputs are probabilities. Wrap the model"):
        sn.Shield(Fixed(), sn.GaussianNoise(1.0), outputs="probabilities")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"outputs": "scores"}, "Expected outputs to be one of logits, probabilities"),
        ({"release": "nothing"}, "Expected release to be one of logits, probabilities, labels"),
    ],
)
def test_unknown_kinds_are_refused(arguments, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        sn.Shield(Fixed(), **arguments)


def test_what_is_no_defense_or_no_model_is_refused() -> None:
    with pytest.raises(
        sn.errors.ConfigError, match=r"Expected a defense such as Round\(2\), got 3"
    ):
        sn.Shield(Fixed(), 3)
    with pytest.raises(
        sn.errors.ConfigError, match=r"one by one: Shield\(model, TopK\(3\), Round\(1\)\)"
    ):
        sn.Shield(Fixed(), [sn.TopK(3), sn.Round(1)])
    with pytest.raises(sn.errors.ConfigError, match=r"Give it its settings: Label\(...\)"):
        sn.Shield(Fixed(), sn.Label)
    with pytest.raises(sn.errors.ConfigError, match="Expected model to be an nn.Module, .*got str"):
        sn.Shield("model.pt")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"one": torch.zeros(2, 3), "two": torch.zeros(2, 3)}, "it holds one, two. Name it"),
        ({"logits": [[1.0, 2.0]]}, "Expected the answer to be a tensor|it holds logits.0.0"),
        ("scores", r"in what the model returned \(str\); it holds the output itself"),
        (torch.zeros(2, 0), "at least 2 classes"),
        (torch.zeros(2, 3, 4), "axis=1 for a segmentation .* axis=-1 for a language model"),
        (torch.zeros(2, 3, device="meta"), "a tensor without data"),
        (torch.zeros(3), r"Expected scores of shape \(rows, classes\).*got shape \(3,\)"),
        (torch.zeros(2, 1), "at least 2 classes"),
        (torch.zeros(2, 3, dtype=torch.int64), "Expected floating-point logits, got torch.int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), "Expected floating-point logits"),
        (torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), "NaN or Inf in row 1 of 2"),
        (torch.tensor([[0.0, math.inf]]), "NaN or Inf in row 0 of 1"),
        (torch.tensor([[-math.inf, math.inf]]), "NaN or Inf in row 0 of 1"),
    ],
)
def test_what_cannot_be_defended_is_refused(output, words) -> None:
    with pytest.raises(sn.errors.AnswerError, match=words):
        sn.harden(Fixed(output))(torch.zeros(1))


def test_a_model_that_returns_nothing_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    with pytest.raises(sn.errors.AnswerError, match="The model returned None"):
        sn.harden(Silent())(torch.zeros(1))


def test_logits_declared_as_probabilities_are_refused_with_row_and_sum_alone() -> None:
    words = "Row 1 of 2 is not a distribution: it sums to 7. Expected probabilities"
    with pytest.raises(sn.errors.AnswerError, match=words) as error:
        sn.harden(Fixed(), outputs="probabilities")(torch.tensor([[0.5, 0.5], [2.125, 4.875]]))
    assert not any(digits in str(error.value) for digits in ("4.875", "2.125"))


def test_probabilities_declared_as_logits_are_refused_at_the_first_answer(scores) -> None:
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(
            sn.errors.AnswerError, match="seem to be probabilities.*outputs='probabil"
        ):
            sn.harden(Fixed())(scores.to(dtype).softmax(-1))
    segmentation = torch.randn(2, 5, 4, 4).softmax(1)
    with pytest.raises(sn.errors.AnswerError, match="seem to be probabilities"):
        sn.harden(Fixed(), axis=1)(segmentation)


def test_more_top_classes_than_classes_are_refused_unless_all_will_do(scores) -> None:
    with pytest.raises(
        sn.errors.AnswerError, match="expects at least 20 classes, the model has 10"
    ):
        sn.Shield(Fixed(), sn.TopK(20))(scores)
    assert torch.isfinite(sn.Shield(Fixed(), sn.TopK(20, or_all=True))(scores)).all()


def test_huge_finite_scores_are_defended() -> None:
    answers = sn.harden(Fixed())(torch.tensor([[3e38, 3e38, 1e38], [-3e38, 3e38, -3e38]]))
    assert answers.argmax(-1).tolist() == [0, 1]


@pytest.mark.parametrize("chain", [(sn.Temperature(1e-3),), (sn.Temperature(1e-3), sn.Round(1))])
def test_what_overflows_inside_the_defenses_is_not_released(chain) -> None:
    with pytest.raises(
        sn.errors.AnswerError, match=r"Temperature\(.*\) returned NaN or Inf; nothing was rel"
    ):
        sn.Shield(Fixed(), *chain)(torch.tensor([[3e38, 1.0, 0.0]]))


def test_an_empty_batch_gets_an_empty_answer() -> None:
    assert sn.harden(Fixed())(torch.zeros(0, 4)).shape == (0, 4)


def test_another_number_of_classes_is_refused(scores) -> None:
    shield = sn.harden(Fixed())
    shield(scores)
    with pytest.raises(
        sn.errors.AnswerError, match="Expected 10 classes as in the first answer, got 4"
    ):
        shield(torch.zeros(1, 4))


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm1d(4)])
def test_layers_in_training_mode_are_refused_by_name(layer) -> None:
    shield = sn.harden(nn.Sequential(nn.Linear(6, 4), layer))
    with pytest.raises(sn.errors.AnswerError, match=r"layer 1 \(.*\) would make.*Call shield.eval"):
        shield(torch.zeros(2, 6))
    shield.eval()
    assert shield(torch.zeros(2, 6)).shape == (2, 4)


def test_answers_carry_no_graph_and_the_model_is_not_touched(linear) -> None:
    linear.train()
    seen = []
    handle = linear.register_forward_hook(lambda *_: seen.append(1))
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    state = torch.get_rng_state()
    shield = sn.Shield(linear, sn.ClipNorm(5.0), sn.GaussianNoise(1.0))
    answers = shield(torch.ones(3, 6, requires_grad=True))
    assert not answers.requires_grad
    assert linear.training
    assert len(seen) == 7, "asked once, and tried"
    shield(torch.ones(3, 6))
    assert len(seen) == 8, "tried with the first answers alone"
    assert linear.weight.requires_grad
    assert linear.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in linear.state_dict().items())
    handle.remove()


class Awkward(nn.Module):
    """A model with a child called model, whose own child is called model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        self.model.model = nn.Linear(5, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.model.model(self.model[1](self.model[0](x))))


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), Awkward])
def test_state_dict_keys_are_the_models_own_in_both_directions(make) -> None:
    model, other = make(), make()
    shield = sn.harden(model)
    assert list(shield.state_dict()) == list(model.state_dict())
    shield.load_state_dict(other.state_dict(), strict=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    make().load_state_dict(shield.state_dict(), strict=True)


def test_a_shield_inside_another_module_keeps_its_keys() -> None:
    model = Awkward()
    outer = nn.ModuleDict({"served": sn.harden(model), "extra": nn.Linear(2, 2)})
    assert [key for key in outer.state_dict() if key.startswith("served.")] == [
        f"served.{key}" for key in model.state_dict()
    ]
    outer.load_state_dict(outer.state_dict(), strict=True)


def test_a_shield_moves_and_casts_its_model(linear) -> None:
    shield = sn.harden(linear).double()
    assert linear.weight.dtype == torch.float64
    assert shield(torch.zeros(1, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])  # noqa: S301 - our own bytes
def test_a_copy_answers_alike_and_is_separate(copy_of, linear) -> None:
    shield = sn.harden(linear)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    twin = copy_of(shield)
    assert torch.equal(twin(x), shield(x))
    assert twin.model is not linear
    assert list(twin.state_dict()) == list(shield.state_dict())


def test_methods_that_would_bypass_the_shield_raise_and_name_the_way() -> None:
    class Generates(nn.Linear):
        def generate(self) -> str:
            return "a bare answer"

    shield = sn.harden(Generates(6, 4))
    words = (
        r"shield.generate is blocked.*Call shield\(...\) instead, model.generate\(..., logits_pro"
    )
    with pytest.raises(sn.errors.BypassError, match=words):
        shield.generate()
    assert not hasattr(shield, "generate")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shield.nothing  # noqa: B018 - the access itself must raise


def test_many_threads_get_the_answers_of_one(linear) -> None:
    shield = sn.harden(linear)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    alone = shield(x)
    answers: list[Tensor] = []
    threads = [threading.Thread(target=lambda: answers.append(shield(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(answer, alone) for answer in answers)


def test_keyword_arguments_reach_the_model(linear) -> None:
    assert sn.harden(linear)(input=torch.zeros(2, 6)).shape == (2, 4)


def test_a_certificate_needs_the_number_of_classes_once(linear) -> None:
    shield = sn.harden(linear)
    with pytest.raises(
        sn.errors.ConfigError, match=r"Answer a batch first, or give it: .*classes=10"
    ):
        shield.certificate()
    assert shield.certificate(classes=4).bits == 4
    shield(torch.zeros(1, 6))
    assert shield.certificate().bits == 4


def test_fresh_noise_costs_more_with_every_query_and_without_a_clip_it_has_no_cost() -> None:
    clipped = sn.Shield(Fixed(), sn.ClipNorm(10.0), sn.GaussianNoise(2.0))
    mus = [clipped.certificate(10, queries=count).mu for count in (1, 16, 256)]
    assert mus == pytest.approx([10, 40, 160])
    bare = sn.Shield(Fixed(), sn.GaussianNoise(2.0)).certificate(10)
    assert bare.mu == bare.bits == math.inf
    assert "infinite" in str(bare)


def test_what_follows_the_noise_does_not_raise_its_cost() -> None:
    chain = (sn.ClipNorm(10.0), sn.GaussianNoise(8.0))
    noisy = sn.Shield(Fixed(), *chain).cost(10)
    cut = sn.Shield(Fixed(), *chain, sn.TopK(1), sn.Round(1)).cost(10)
    assert cut.mu == noisy.mu
    assert cut.bits <= noisy.bits


def test_cut_first_then_rounded_is_cheaper_than_rounded_alone() -> None:
    rounded = sn.Shield(Fixed(), sn.Round(1)).cost(10).bits
    cut = sn.Shield(Fixed(), sn.TopK(3), sn.Round(1)).cost(10).bits
    assert cut == pytest.approx(math.log2(120 * 286))
    assert cut < rounded


def test_each_row_gets_its_own_classes_and_not_the_batchs() -> None:
    """The peer's label defense gives every row the union of all rows' classes."""
    answers = sn.harden(Fixed(), "strict")(torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]]))
    assert answers.softmax(-1).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_a_shield_is_collected_with_its_model() -> None:
    import weakref

    model = nn.Linear(2, 2)
    shield = sn.harden(model)
    shield(torch.zeros(1, 2))
    ghost = weakref.ref(model)
    del model, shield
    gc.collect()
    assert ghost() is None


def test_batch_norm_without_running_statistics_mixes_rows_and_is_refused() -> None:
    layer = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(
        sn.errors.AnswerError, match="let rows of a batch change each other. Track its"
    ):
        sn.harden(nn.Sequential(nn.Linear(6, 4), layer).eval())(torch.zeros(2, 6))


def test_a_layer_put_in_later_and_dropout_inside_a_layer_are_seen() -> None:
    model = nn.Sequential(nn.Linear(6, 4)).eval()
    shield = sn.harden(model)
    shield(torch.zeros(2, 6))
    model.append(nn.Dropout())
    with pytest.raises(sn.errors.AnswerError, match="layer 1"):
        shield(torch.zeros(2, 6))
    recurrent = nn.ModuleList([nn.LSTM(6, 4, num_layers=2, dropout=0.5)])
    with pytest.raises(sn.errors.AnswerError, match=r"layer 0 \(LSTM\)"):
        sn.harden(recurrent)(torch.zeros(2, 6))


@pytest.mark.parametrize(
    "chain", [(sn.TopK(1),), (sn.TopK(3),), (sn.TopK(3), sn.Round(1))], ids=str
)
@pytest.mark.parametrize("classes", [4, 10, 1000])
def test_nearly_flat_rows_keep_their_winner(chain, classes) -> None:
    rows = torch.randn(5000, classes, generator=torch.Generator().manual_seed(0)) * 1e-6
    rows = rows.softmax(-1)
    released = sn.Shield(Fixed(), *chain, outputs="probabilities")(rows)
    winners = (rows / rows.sum(-1, keepdim=True)).argmax(-1)
    assert torch.equal(released.argmax(-1), winners)


def test_rows_that_sum_to_a_little_less_than_one_are_normalized() -> None:
    rows = torch.tensor([[0.331, 0.331, 0.333]])
    released = sn.Shield(Fixed(), sn.TopK(1), outputs="probabilities")(rows)
    assert int(released.argmax()) == 2
    assert float(released.sum()) == pytest.approx(1, abs=1e-5)


def test_a_certificate_of_other_classes_than_those_answered_is_refused(linear) -> None:
    shield = sn.harden(linear)
    for wrong in (1, 0, -3, "10"):
        with pytest.raises(sn.errors.ConfigError, match="Expected classes >= 2"):
            shield.certificate(classes=wrong)
    shield(torch.zeros(1, 6))
    with pytest.raises(sn.errors.ConfigError, match="has answered 4 classes, not 2"):
        shield.certificate(classes=2)
    with pytest.raises(sn.errors.ConfigError, match="expects at least 5 classes, the model has 4"):
        sn.Shield(linear, sn.TopK(5), sn.Round(1)).certificate(classes=4)


def test_a_shield_goes_around_a_model_and_never_around_a_shield() -> None:
    """Defenses inside would act before those outside, and no privacy cost would count them."""
    inner = sn.Shield(nn.Linear(3, 4), sn.TopK(2))
    for model in (inner, nn.Sequential(inner, nn.Identity())):
        with pytest.raises(sn.errors.ConfigError, match="is a Shield already, or holds one"):
            sn.harden(model)
    with pytest.raises(sn.errors.ConfigError, match="A Shield cannot be trained"):
        sn.finetune(inner, (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)))
