import torch

from shieldnet.attacks.membership.perturbations import perturbed

MEMBERS, OWNED = (
    torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    for rows, seed in ((60, 1), (50, 3))
)


def test_perturbed_copies_are_the_same_for_every_asker_and_further_off_each_time() -> None:
    inputs, owned = MEMBERS, OWNED
    copies = perturbed(inputs, owned, 0)
    assert torch.equal(copies, perturbed(inputs, owned, 0))
    distances = (copies - inputs).flatten(1).norm(dim=1)
    assert distances[-1] > 5 * distances[0]


def test_how_far_a_record_is_moved_depends_on_no_other_record_of_its_set() -> None:
    """A column that was constant in one set alone was moved by 1 there: 7 false alarms of 21."""
    inputs, owned = MEMBERS.clone(), OWNED.clone()
    owned[:, 0], inputs[:, 1] = 7.0, 3.0
    every = perturbed(inputs, owned, 0)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:9]
    assert torch.equal(perturbed(inputs[order], owned, 0), every[:, order])
    assert torch.equal(every[:, :, 0], inputs[:, 0].expand(len(every), -1))
    assert (every[:, :, 1] != 3.0).all()
