import json

import pytest
import torch

from shieldnet import demo
from shieldnet.attacks import Inversion, Membership
from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.auditing import plan as tiers
from shieldnet.auditing.plan import Tier


def test_the_demo_writes_one_page_and_one_file_for_both_tasks(tmp_path, monkeypatch) -> None:
    fast = Tier("quick", (Inversion(decoders=(Ridge(),)), Membership()))
    monkeypatch.setattr(tiers, "TIERS", {"quick": fast})
    reports = demo.run(tmp_path / "new folder", progress=False)
    assert [len(report.subjects) for report in reports] == [4, 4]
    page = (tmp_path / "new folder" / "report.html").read_text()
    assert "Handwritten digits" in page
    assert "Breast cancer" in page
    document = json.loads((tmp_path / "new folder" / "report.json").read_text())
    assert len(document["reports"]) == 2
    for report in reports:
        accuracy = {subject["accuracy"].value for subject in report.subjects}
        assert len(accuracy) == 1


@pytest.mark.parametrize("make_task", demo.TASKS)
def test_members_auxiliary_data_and_nonmembers_are_disjoint_and_complete(make_task) -> None:
    task = make_task()
    split = demo.divide(task)
    parts = (split.members, split.auxiliary, split.nonmembers)
    assert sum(len(inputs) for inputs, _ in parts) == len(task.inputs)
    assert [len(inputs) for inputs, _ in parts[:2]] == [task.members, task.auxiliary]


def test_training_learns_and_leaves_the_global_seed_alone() -> None:
    state = torch.get_rng_state()
    task = demo.breast_cancer()
    split = demo.divide(task)
    model = demo.train(task, split, epochs=20)
    assert torch.equal(torch.get_rng_state(), state)
    inputs, labels = split.nonmembers
    assert (model(inputs).argmax(-1) == labels).double().mean() > 0.9
