"""Two processes train what one would have trained."""

import json
import os
import subprocess
import sys

import pytest
import torch

import shieldnet as sn

SCRIPT = """
import json, sys
import torch
import shieldnet as sn

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(60, 12, generator=generator)
labels = inputs[:, :3].argmax(1)
torch.manual_seed(rank)  # the first one's weights are taken
model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
said = {}
for way, batch in (("full", None), ("private", 20), ("plain", 20)):
    private = () if way == "plain" else (sn.DPSGD(8.0, 1e-3, canaries=40),)
    seed = 5 if way != "private" or rank == 0 else 6  # draws are the first one's
    found = sn.finetune(model, (inputs, labels), *private, batch_size=batch, epochs=3, seed=seed)
    weights = torch.cat([one.detach().flatten() for one in found.model.parameters()])
    said[way] = {"weights": weights.tolist(), "findings": [one.value for one in found.findings]}
    if found.guarantee is not None:
        said[way]["epsilon"] = found.guarantee.epsilon
json.dump(said, open(f"{sys.argv[1]}/{rank}.json", "w"))
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_ranks_end_where_one_process_ends(tmp_path, make_model) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, str(script), str(tmp_path)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 12, generator=generator)
    model = make_model(
        lambda: torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    )
    for way, batch in (("full", None), ("private", 20), ("plain", 20)):
        private = () if way == "plain" else (sn.DPSGD(8.0, 1e-3, canaries=40),)
        alone = sn.finetune(
            model, (inputs, inputs[:, :3].argmax(1)), *private, batch_size=batch, epochs=3, seed=5
        )
        weights = torch.cat([each.detach().flatten() for each in alone.model.parameters()])
        assert one[way]["weights"] == other[way]["weights"]
        assert torch.allclose(weights, torch.tensor(one[way]["weights"]), atol=1e-5)
        assert one[way]["findings"] == [each.value for each in alone.findings]
        if alone.guarantee is not None:
            assert one[way]["epsilon"] == other[way]["epsilon"] == alone.guarantee.epsilon
