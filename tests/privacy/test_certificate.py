import pytest

import shieldnet as sn
from shieldnet.privacy.certificate import NOT_COVERED


def test_a_certificate_prints_formula_prior_and_limits() -> None:
    text = str(sn.Certificate("chain", 10, sn.PrivacyCost(bits=5.3, mu=2.0), queries=2))
    assert "prior x 2^10.60" in text
    assert "no bound for a prior above 2^-10.60" in text
    assert "2.83-GDP between any two inputs" in text
    assert all(limit in text for limit in NOT_COVERED)


def test_queries_add_up() -> None:
    one = sn.Certificate("chain", 10, sn.PrivacyCost(bits=3, mu=1))
    four = sn.Certificate("chain", 10, sn.PrivacyCost(bits=3, mu=1), queries=4)
    assert (four.bits, four.mu) == (12, 2)
    assert four.reconstruction(1e-6) > one.reconstruction(1e-6)
    assert four.distinguish(0.01) > one.distinguish(0.01)
    assert four.epsilon(1e-6) > one.epsilon(1e-6)


def test_no_bound_is_said_in_words() -> None:
    text = str(sn.Certificate("Linear", 10, sn.PrivacyCost()))
    assert "bits infinite" in text
    assert "no differential privacy" in text


@pytest.mark.parametrize("arguments", [{"classes": 0}, {"classes": 10, "queries": 0}])
def test_a_certificate_of_nothing_never_exists(arguments) -> None:
    with pytest.raises(sn.errors.ConfigError, match="Expected"):
        sn.Certificate("chain", cost=sn.PrivacyCost(), **arguments)
