"""Fine-tunes privately on a cluster: Ray Train starts the workers, shieldnet shares the batches.

Every worker calls the same line. Draws and noise are the first one's, so that two workers, or two
hundred, end with the weights and the epsilon of one. It takes: pip install 'ray[train]'
"""

import tempfile
from pathlib import Path

import ray
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig, get_context, report
from ray.train.torch import TorchConfig, TorchTrainer

import shieldnet as sn
from shieldnet.demo import digits, digits_network, divide


def work(config: dict) -> None:
    split = divide(digits())
    torch.manual_seed(0)
    private = sn.finetune(
        digits_network(),
        split.members,
        sn.DPSGD(epsilon=8.0, delta=1e-4),
        epochs=config["epochs"],
        learning_rate=0.5,
        start="public",
    )
    inputs, labels = split.nonmembers
    right = (private.model(inputs).argmax(-1) == labels).double().mean()
    told = {"accuracy": float(right), "epsilon": private.guarantee.epsilon}
    if get_context().get_world_rank() == 0:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(private.model.state_dict(), Path(folder) / "model.pt")
            report(told, checkpoint=Checkpoint.from_directory(folder))
    else:
        report(told)


def main(epochs: int = 60) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            work,
            train_loop_config={"epochs": epochs},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(storage_path=folder),
        )
        found = trainer.fit()
        print(
            "accuracy {accuracy:.3f} at epsilon {epsilon:.2f}, two workers".format(**found.metrics)
        )
        with found.checkpoint.as_directory() as kept:
            print("weights:", *torch.load(Path(kept) / "model.pt", weights_only=True))
    ray.shutdown()


if __name__ == "__main__":
    main()
