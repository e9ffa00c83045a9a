"""Audits a hardened language model: pretrained in public, fine-tuned on private notes, and writing.

The model is built from a configuration and trained here; nothing is downloaded.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import shieldnet as sn

WORDS = 40
LENGTH = 12


def texts(count: int, seed: int) -> Tensor:
    """Draws texts in which one of three words follows each, four times in five."""
    follows = torch.randint(2, WORDS, (WORDS, 3), generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(2, WORDS, (count,), generator=generator)]
    for _ in range(LENGTH - 1):
        usual = follows[columns[-1], torch.randint(3, (count,), generator=generator)]
        odd = torch.randint(2, WORDS, (count,), generator=generator)
        columns.append(torch.where(torch.rand(count, generator=generator) < 0.2, odd, usual))
    return torch.stack(columns, 1)


def trained(model: nn.Module, words: Tensor, steps: int) -> nn.Module:
    """Trains a copy on next words."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = words[torch.randint(len(words), (64,), generator=generator)]
        scores = model(input_ids=batch).logits[:, :-1].flatten(0, 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, batch[:, 1:].flatten()).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=48, n_layer=1, n_head=2, **ids)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    public = trained(GPT2LMHeadModel(config), texts(2000, seed=1), steps=100)
    private, unseen = texts(200, seed=2), texts(200, seed=3)
    model = trained(public, private, steps=60)

    shields = {
        "top 5, one decimal": sn.Shield(
            model, sn.TopK(5), sn.Round(1), axis=-1, drop=("past_key_values",)
        ),
        "words alone": sn.harden(model, "strict", axis=-1, drop=("past_key_values",)),
    }
    every = torch.ones_like(private)
    report = sn.audit(
        shields,
        members={"input_ids": private, "attention_mask": every},
        nonmembers={"input_ids": unseen, "attention_mask": every},
        base=public,
        tier="quick",
        progress=False,
    )

    for subject in report.subjects:
        found = {finding.name: finding for finding in subject.findings}
        worst, recited = found["membership.sequences.auc"], found["extraction.verbatim"]
        print(f"{subject.name:>18}: members told with AUC {worst} ({worst.source}),", end=" ")
        print(f"texts completed verbatim {recited} (nonmembers {recited.baseline:.3f})")
    limits = sn.Policy({"max_sequence_membership_auc": 0.6, "max_verbatim": 0.01})
    print("The policy says", report.passes(limits).outcome)

    start = unseen[:1, :3]
    written = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=8,
        do_sample=True,
        logits_processor=[sn.LogitsProcessor(sn.TopK(5), sn.Round(1))],
    )
    print("Written behind the first shield:", written[0].tolist())


if __name__ == "__main__":
    main()
