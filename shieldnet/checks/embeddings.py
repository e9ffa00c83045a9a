"""Models of tokens as functions of their embeddings: these have a gradient, tokens have none."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shieldnet.attacks.answers import Behind
from shieldnet.data.packing import Packing
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield

_BATCH = 1024
Call = tuple[int, nn.Embedding]
"""Which of a row's inputs is read, and by which layer."""


class FromEmbeddings(nn.Module):
    """The model behind a shield, from the embeddings of its tokens on.

    tokens: rows whose other uses, such as a mask of what is padding, the model sees in the place
    of the rows that are embedded. The layers' own answers are replaced while the model is asked.
    calls: of the layers, in the order in which the model makes them. packing: of several inputs.
    Shapes: tokens (rows, length).
    """

    def __init__(
        self, shield: Shield, calls: list[Call], tokens: Tensor, packing: Packing | None
    ) -> None:
        super().__init__()
        self.behind = Behind(shield)
        self.calls = calls
        self.tokens = tokens
        self.packing = packing
        self.shapes = [part.shape[1:] for part in self._embedded(tokens[:1])]

    @classmethod
    def of(cls, shield: Shield, tokens: Tensor, packing: Packing | None) -> "FromEmbeddings":
        """Finds the layer that reads the tokens, of each of several inputs that one reads.

        Shapes: tokens (rows, length), on the model's device.
        Errors: NotApplicable where no layer reads any, or several read one.
        """
        parts, calls = _parts(tokens, packing), list[Call]()

        def seen(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            calls.extend(
                (place, layer)  # type: ignore[misc]  # only embeddings have this hook
                for place, part in enumerate(parts)
                if inputs and _are_same(inputs[0], part)
            )

        layers = [module for module in shield.model.modules() if isinstance(module, nn.Embedding)]
        hooks = [layer.register_forward_hook(seen) for layer in layers]
        try:
            with torch.no_grad():
                Behind(shield)(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        places = [place for place, _ in calls]
        if not calls or len(set(places)) < len(places):
            raise NotApplicable(
                f"tokens have no gradient, and {len(calls)} layers of nn.Embedding read them: it "
                "takes one"
            )
        return cls(shield, calls, tokens, packing)

    def embedded(self, tokens: Tensor) -> Tensor:
        """Returns the embeddings of rows of tokens, side by side.

        Shapes: (n, length) -> (n, numbers).
        """
        return torch.cat([part.flatten(1) for part in self._embedded(tokens)], 1)

    def _embedded(self, tokens: Tensor) -> Iterator[Tensor]:
        parts = _parts(tokens, self.packing)
        with torch.no_grad():
            for place, layer in self.calls:
                device = layer.weight.device
                split = parts[place].split(_BATCH)
                yield torch.cat([layer(part.to(device)).cpu() for part in split])

    def forward(self, embedded: Tensor) -> Tensor:
        """Shapes: (rows, numbers) -> (rows, classes)."""
        pairs = zip(
            embedded.split([shape.numel() for shape in self.shapes], 1), self.shapes, strict=True
        )
        answers = iter([part.reshape(len(part), *shape) for part, shape in pairs])
        layers = {id(layer): layer for _, layer in self.calls}.values()
        hooks = [layer.register_forward_hook(lambda *_: next(answers)) for layer in layers]
        try:
            scores: Tensor = self.behind(self.tokens[: len(embedded)])
        finally:
            for hook in hooks:
                hook.remove()
        return scores


def _parts(tokens: Tensor, packing: Packing | None) -> tuple[Tensor, ...]:
    return (tokens,) if packing is None else packing.parts(tokens)


def _are_same(read: Tensor, part: Tensor) -> bool:
    return read.shape == part.shape and torch.equal(read.to(part.dtype), part)
