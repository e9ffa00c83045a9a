"""Fine-tunes a digit classifier privately and audits what it claims.

A hundred digits stand for public data, on which the model is trained first. Five hundred others are
private: the model learns from them within epsilon 4, and canaries check the run itself.
"""

import shieldnet as sn
from shieldnet.demo import digits, digits_network, divide


def main() -> None:
    split = divide(digits())
    inputs, labels = split.auxiliary
    public = sn.Recipe(digits_network, epochs=40)((inputs[:100], labels[:100]), seed=0)
    private = sn.finetune(
        public,
        split.members,
        sn.DPSGD(epsilon=4.0, delta=1e-4, canaries=500),
        epochs=20,
        learning_rate=0.5,
        start="public",
        heldout=split.nonmembers,
    )
    print(private)
    print(private.preflight)
    inputs, labels = split.nonmembers
    for name, model in (("before", public), ("after", private.model)):
        print(f"{name}: {(model(inputs).argmax(-1) == labels).double().mean():.3f} right")


if __name__ == "__main__":
    main()
