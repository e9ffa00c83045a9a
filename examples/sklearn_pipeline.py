"""Hardens a scikit-learn pipeline, which keeps its own face: predict_proba, predict, classes_."""

from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import shieldnet as sn


def main() -> None:
    data = load_wine()
    x_train, x_test, y_train, y_test = train_test_split(
        data.data, data.target, test_size=0.5, random_state=0, stratify=data.target
    )
    pipeline = make_pipeline(StandardScaler(), RandomForestClassifier(100, random_state=0))
    pipeline.fit(x_train, y_train)

    shield = sn.Shield(pipeline, sn.Confidence(4))

    before, after = pipeline.predict_proba(x_test), shield.predict_proba(x_test)
    print(f"{len(x_test)} new wines, answers are a {type(after).__name__} of {after.dtype}")
    print(f"accuracy: {accuracy_score(y_test, pipeline.predict(x_test)):.3f} bare,", end=" ")
    print(f"{accuracy_score(y_test, shield.predict(x_test)):.3f} hardened")
    print(f"first wine: {before[0].round(4)} bare, {after[0].round(4)} hardened")
    print(f"different answers: {distinct(before)} bare, {distinct(after)} hardened")
    print(shield.certificate(queries=10))


def distinct(answers) -> int:
    """Counts the rows that differ."""
    return len(set(map(tuple, answers.tolist())))


if __name__ == "__main__":
    main()
