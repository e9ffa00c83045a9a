"""An answer as the protocol and the plain route send it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from shieldnet.serving.app.datatypes import OF_DTYPE
from shieldnet.serving.app.requests import Asked
from shieldnet.serving.budget import Balance

_LIMITED = ("bits", "mu", "queries")


def written_infer(
    asked: Asked, answers: Mapping[str, Tensor], name: str, version: str
) -> tuple[bytes, int | None]:
    """Returns the body of a response, and how many bytes of it are JSON if others follow.

    answers: every output of the model; those that were asked for are written, in their order.
    """
    outputs, tail = [], []
    for wanted in asked.outputs:
        answer = answers[wanted]
        kind = OF_DTYPE[str(answer.dtype).removeprefix("torch.")]
        output: dict[str, Any] = {
            "name": wanted,
            "shape": list(answer.shape),
            "datatype": kind.name,
        }
        if wanted in asked.binary:
            tail.append(kind.bytes_of(answer))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = answer.flatten().tolist()
        outputs.append(output)
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if asked.id is not None:
        document["id"] = asked.id
    head = _json({**document, "outputs": outputs})
    return (b"".join([head, *tail]), len(head)) if asked.binary else (head, None)


def written_predict(answers: Mapping[str, Tensor]) -> bytes:
    """Returns the body of a response of the plain route."""
    rows = {name: answer.tolist() for name, answer in answers.items()}
    return _json({"outputs": next(iter(rows.values())) if len(rows) == 1 else rows})


def written_budgets(balances: Iterable[Balance]) -> dict[str, Any]:
    """Returns what is left of a client's budgets, as JSON takes it."""
    return {
        "budgets": [
            {
                "window": one.budget.window,
                "renews_at": one.renews_at,
                "limits": {name: getattr(one.budget, name) for name in _LIMITED},
                "left": {
                    name: None if getattr(one.budget, name) is None else getattr(one, name)
                    for name in _LIMITED
                },
            }
            for one in balances
        ]
    }


def _json(document: Mapping[str, Any]) -> bytes:
    # A number that is no number cannot come: the Shield releases none.
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
