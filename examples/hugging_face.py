"""Hardens Hugging Face models: a classifier of film reviews, and a writer of them.

Both are built from a configuration and trained here; nothing is downloaded.
"""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import shieldnet as sn

BAD, GOOD = ("dull", "awful", "flat", "boring"), ("great", "moving", "funny", "superb")
WORDS = ("<pad>", "<end>", "the", "film", "plot", "cast", "was", "and", "seemed", *BAD, *GOOD)


def reviews(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws "the plot was dull and the cast seemed great and the film was ...", and its verdict.

    Shapes: -> words (count, 15), the verdict (count,): 1 where most of the words are good, but
    one reviewer in ten says the opposite.
    """
    generator = torch.Generator().manual_seed(seed)

    def one_of(*words: str) -> Tensor:
        chosen = torch.randint(len(words), (count,), generator=generator)
        return torch.tensor([WORDS.index(word) for word in words])[chosen]

    columns = []
    for last in ("and", "and", "<end>"):
        columns += [one_of("the"), one_of("film", "plot", "cast")]
        columns += [one_of("was", "seemed"), one_of(*BAD, *GOOD), one_of(last)]
    words = torch.stack(columns, 1)
    is_good = (words >= WORDS.index(GOOD[0])).sum(1) >= 2
    return words, (is_good ^ (torch.rand(count, generator=generator) < 0.1)).long()


def train(model: nn.Module, to_write: bool) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(80):
        words, verdicts = reviews(64, seed=step)
        optimizer.zero_grad()
        scores = model(input_ids=words).logits
        if to_write:  # every word but the last is asked for the next one
            scores, verdicts = scores[:, :-1].flatten(0, 1), words[:, 1:].flatten()
        nn.functional.cross_entropy(scores, verdicts).backward()
        optimizer.step()
    model.eval()


def main() -> None:
    torch.manual_seed(0)
    small = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64}
    config = BertConfig(**small, num_hidden_layers=2, num_attention_heads=2)
    model = BertForSequenceClassification(config)
    train(model, to_write=False)
    words, verdicts = reviews(500, seed=1000)

    shield = sn.harden(model)

    print("Of 500 new reviews:")
    for name, one in (("bare", model), ("hardened", shield)):
        with torch.no_grad():
            answers = one(input_ids=words)
        right = (answers.logits.argmax(1) == verdicts).float().mean()
        first = [round(chance, 4) for chance in answers.logits[0].softmax(0).tolist()]
        print(f"{name:>8}: {right:.3f} right, {type(answers).__name__}, the first one's: {first}")
    print(shield)

    try:
        shield(input_ids=words, output_hidden_states=True)
    except sn.errors.AnswerError as refused:
        print("output_hidden_states=True is refused:", refused)
    dropping = sn.harden(model, drop=("hidden_states",))
    answers = dropping(input_ids=words, output_hidden_states=True)
    print("With drop=('hidden_states',) the answer has", *answers)

    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=2, **ids)
    writer = GPT2LMHeadModel(config)
    train(writer, to_write=True)

    shield = sn.Shield(writer, sn.TopK(5), sn.Round(2), axis=-1, drop=("past_key_values",))

    for name, one in (("bare", writer), ("hardened", shield)):
        with torch.no_grad():
            answers = one(input_ids=words)
        right = (answers.logits[:, :-1].argmax(-1) == words[:, 1:]).float().mean()
        print(f"{name:>8}: {right:.3f} of next words right, the answer has: {', '.join(answers)}")
    print(shield)

    try:
        shield.generate(words[:1, :2])
    except sn.errors.BypassError as refused:
        print("shield.generate is refused:", refused)
    written = writer.generate(
        words[:1, :2],
        attention_mask=torch.ones_like(words[:1, :2]),
        max_new_tokens=13,
        do_sample=True,
        logits_processor=[sn.LogitsProcessor(sn.TopK(5), sn.Round(2))],
    )
    print("Written with a shield on every word:", *(WORDS[word] for word in written[0]))


if __name__ == "__main__":
    main()
