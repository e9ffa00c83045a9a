"""Hardens a Keras 3 model that runs on torch."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import shieldnet as sn


def main() -> None:
    keras.utils.set_random_seed(0)
    data = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        (data.data / 16).astype("float32"), data.target, test_size=0.4, random_state=0
    )
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy")
    model.fit(x_train, y_train, batch_size=64, epochs=8, verbose=0)

    shield = sn.harden(model, outputs="probabilities")

    x, y = torch.tensor(x_test), torch.tensor(y_test)
    for name, answers in (("bare", model(x).detach()), ("hardened", shield(x))):
        right = (answers.argmax(1) == y).float().mean()
        print(f"{name:>8}: {right:.3f} of {len(x)} new digits right; the first one's answer:")
        print("         ", *(f"{one:.4f}" for one in answers[0]))
    print(shield.certificate())

    try:
        shield.predict(x_test)  # Keras's own way out would go past the shield
    except sn.errors.BypassError as refused:
        print("shield.predict is refused:", refused)


if __name__ == "__main__":
    main()
