"""Models of tokens as functions of their embeddings: these have a gradient, tokens have none."""

import torch
from torch import Tensor, nn

from shieldnet.attacks.base import Behind
from shieldnet.findings.finding import NotApplicable
from shieldnet.shield.module import Shield

_BATCH = 1024


class FromEmbeddings(nn.Module):
    """The model behind a shield, from the embeddings of its tokens on.

    tokens: rows whose other uses, such as a mask of what is padding, the model sees in the place
    of the rows that are embedded. The layer's own answer is replaced while the model is asked.
    Shapes: tokens (rows, length).
    """

    def __init__(self, shield: Shield, layer: nn.Embedding, tokens: Tensor) -> None:
        super().__init__()
        self.behind = Behind(shield)
        self.layer = layer
        self.tokens = tokens

    @classmethod
    def of(cls, shield: Shield, tokens: Tensor) -> "FromEmbeddings":
        """Finds the layer that reads the tokens; raises NotApplicable unless there is one.

        Shapes: tokens (rows, length), on the model's device.
        """
        called: list[nn.Embedding] = []

        def seen(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            if inputs and inputs[0].shape == tokens.shape and torch.equal(inputs[0], tokens):
                called.append(layer)  # type: ignore[arg-type]  # only embeddings have this hook

        layers = [module for module in shield.model.modules() if isinstance(module, nn.Embedding)]
        hooks = [layer.register_forward_hook(seen) for layer in layers]
        try:
            with torch.no_grad():
                Behind(shield)(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        if len(called) != 1:
            raise NotApplicable(
                f"tokens have no gradient, and {len(called)} layers of nn.Embedding read them: it "
                "takes one"
            )
        return cls(shield, called[0], tokens)

    def embedded(self, tokens: Tensor) -> Tensor:
        """Returns the embeddings of rows of tokens. Shapes: (n, length) -> (n, length, width)."""
        with torch.no_grad():
            device = self.layer.weight.device
            return torch.cat([self.layer(part.to(device)).cpu() for part in tokens.split(_BATCH)])

    def forward(self, embedded: Tensor) -> Tensor:
        """Shapes: (rows, length, width) -> (rows, classes)."""
        hook = self.layer.register_forward_hook(lambda *_: embedded)
        try:
            scores: Tensor = self.behind(self.tokens[: len(embedded)])
        finally:
            hook.remove()
        return scores
