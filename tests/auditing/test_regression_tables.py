"""Regressions that read tables of words and missing values: asked by tables, with own targets."""

import numpy as np
import pandas
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import shieldnet as sn
from shieldnet.core.errors import ConfigError, DataError

ROWS = 120
CHAIN = (sn.ClipRange(-4, 4), sn.RoundTo(0.5))
FEW = sn.Tier("few", (sn.attacks.Membership(), sn.attacks.AttributeRecovery()))


def a_table(seed: int) -> pandas.DataFrame:
    draw = np.random.default_rng(seed)
    table = pandas.DataFrame(
        {
            "size": draw.normal(size=ROWS),
            "kind": draw.choice(["house", "flat", "barn"], ROWS),
            "rooms": draw.normal(5, 1, ROWS),
        }
    )
    table.loc[draw.random(ROWS) < 0.1, ["size", "kind"]] = np.nan
    return table


def targets_of(table: pandas.DataFrame) -> np.ndarray:
    noise = np.random.default_rng(len(table)).normal(0, 0.3, len(table))
    return (table["size"].fillna(0) + (table["kind"] == "house") + noise).to_numpy()


def train(data, seed):
    table, targets = data
    assert list(table) == ["size", "kind", "rooms"]
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    columns = ColumnTransformer([("w", words, ["kind"]), ("n", SimpleImputer(), ["size", "rooms"])])
    return make_pipeline(columns, GradientBoostingRegressor(random_state=seed)).fit(table, targets)


@pytest.fixture(scope="module")
def sets() -> dict[str, tuple[pandas.DataFrame, np.ndarray]]:
    tables = {name: a_table(s) for s, name in enumerate(("members", "nonmembers", "auxiliary"))}
    return {name: (table, targets_of(table)) for name, table in tables.items()}


@pytest.fixture(scope="module")
def pipeline(sets):
    return train(sets["members"], 0)


def test_a_pipeline_is_audited_by_tables_with_its_own_targets(sets, pipeline) -> None:
    shields = {
        "own": sn.Shield(pipeline, *CHAIN),
        "public": sn.harden(pipeline, "strict", calibrate=sets["auxiliary"][0]),
    }
    with pytest.raises(ConfigError, match="around one model"):
        sn.audit(shields, **sets, tier=FEW)
    for shield in shields.values():
        report = sn.audit(
            shield, **sets, train=train, shadows=4, sensitive=("kind",), tier=FEW, engine="inline"
        )
        table, targets = sets["nonmembers"]
        assert report["bare"]["r2"].value == pytest.approx(pipeline.score(table, targets))
        assert report["shield"]["r2"].value == pytest.approx(shield.score(table, targets))
        assert report["bare"]["membership.auc"].low > 0.5
        assert report["bare"]["attribute.kind"].samples == ROWS
        assert report.title == "Audit of Pipeline"
        assert "unnamed" not in str(report)


def test_predict_of_a_pipeline_is_audited_as_the_pipeline(sets, pipeline) -> None:
    shields = (
        sn.Shield(pipeline, *CHAIN),
        sn.Shield.around(pipeline.predict, *CHAIN, outputs="values"),
    )
    reports = [sn.audit(one, **sets, tier=FEW, shadows=0, engine="inline") for one in shields]
    assert reports[0]["shield"].findings == reports[1]["shield"].findings
    assert reports[0].hashes == reports[1].hashes


def test_targets_as_a_column_of_pandas_are_read_without_a_warning(sets, pipeline) -> None:
    given = {name: (table, pandas.Series(own)) for name, (table, own) in sets.items()}
    frozen = {name: (table, own.to_numpy()) for name, (table, own) in given.items()}
    for _, own in frozen.values():
        own.flags.writeable = False
    for each in (given, frozen):
        report = sn.audit(sn.Shield(pipeline, *CHAIN), **each, tier=FEW, shadows=0)
        assert report["bare"]["r2"].value > 0


def test_a_function_of_a_users_own_has_its_name_in_the_title() -> None:
    def price(inputs):
        return inputs[:, 0] + inputs[:, 1]

    draw = np.random.default_rng(0)
    inputs = [draw.normal(size=(ROWS, 3)) for _ in range(2)]
    parts = {name: (x, price(x)) for name, x in zip(("members", "nonmembers"), inputs, strict=True)}
    shield = sn.Shield.around(price, *CHAIN, outputs="values")
    report = sn.audit(shield, **parts, tier=FEW, shadows=0)
    assert report.title == "Audit of price"
    assert "Around(price) -> ClipRange" in report["shield"].certificate.shield


def test_columns_that_are_missing_are_named(sets, pipeline) -> None:
    table, targets = sets["nonmembers"]
    lacking = {**sets, "nonmembers": (table.drop(columns="kind"), targets)}
    with pytest.raises(DataError, match="nonmembers lack columns that the model needs: kind"):
        sn.audit(sn.Shield(pipeline, *CHAIN), **lacking, tier=FEW)
