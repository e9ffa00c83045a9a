import inspect

import pytest
from torch import nn

import shieldnet as sn
from shieldnet.core.checks import renamed


@renamed(old="new")
def call(first: int, *, new: int = 0) -> int:
    """Adds."""
    return first + new


def test_a_setting_by_the_name_that_it_had_is_refused_with_the_new_one() -> None:
    assert call(1, new=2) == 3
    with pytest.raises(
        sn.errors.ConfigError, match="call has no setting old: it is now called new"
    ):
        call(1, old=2)
    assert list(inspect.signature(call).parameters) == ["first", "new"]
    assert call.__doc__ == "Adds."


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sn.DPSGD(noise=1.0, delta=1e-5), "noise: it is now called noise_multiplier"),
        (lambda: sn.DPSGD(8.0, 1e-5, clip=1.0), "clip: it is now called max_grad_norm"),
        (lambda: sn.DPSGD(8.0, 1e-5, views=4), "views: it is now called augmentations"),
        (lambda: sn.DPSGD(8.0, 1e-5, max_physical_batch=4), "called max_physical_batch_size"),
        (lambda: sn.Recipe(nn.Identity, lr=0.1), "lr: it is now called learning_rate"),
        (lambda: sn.Recipe(nn.Identity, batch=4), "batch: it is now called batch_size"),
        (lambda: sn.finetune(nn.Identity(), None, lr=0.1), "lr: it is now called learning_rate"),
        (lambda: sn.finetune(nn.Identity(), None, batch=4), "batch: it is now called batch_size"),
        (lambda: sn.finetune(nn.Identity(), None, mend=True), "mend: it is now called fix"),
        (lambda: sn.Guarantee(noise=1.0, rate=1.0), "noise: it is now called noise_multiplier"),
    ],
)
def test_renamed_settings_say_their_new_names(make, words) -> None:
    with pytest.raises(sn.errors.ConfigError, match=words):
        make()
