"""Serves a hardened folder by KServe: it is verified first, and clients hear the shield alone.

    python kserve_model.py hardened/ public.pem    # what the container of a custom predictor starts

Without arguments a folder is made and asked once, in this process.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import torch
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput
from torch import nn

import shieldnet as sn


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).eval()


class Hardened(Model):
    """Answers requests of the Open Inference Protocol as the shield in the folder does."""

    def __init__(self, name: str, folder: str | Path, public_key: str | None) -> None:
        super().__init__(name)
        self.folder, self.public_key = folder, public_key

    def load(self) -> bool:
        sn.verify(self.folder, public_key=self.public_key, model=network).require()
        self.shield = sn.load_hardened(self.folder, network, public_key=self.public_key)
        self.ready = True
        return self.ready

    async def predict(
        self, payload: InferRequest, headers=None, response_headers=None
    ) -> InferResponse:
        try:
            answers = self.shield(torch.from_numpy(payload.inputs[0].as_numpy())).numpy()
        except (sn.errors.ShieldnetError, RuntimeError, TypeError):
            raise InvalidInput("These rows have no answer.") from None  # and no reason
        output = InferOutput("answers", list(answers.shape), "FP32")
        output.set_data_from_numpy(answers, binary_data=False)
        return InferResponse(payload.id or "", self.name, [output])


def main(folder: Path) -> None:
    shield, rows = sn.harden(network(), "open"), torch.randn(6, 20)
    sn.save_hardened(shield, folder / "hardened", example=rows)
    model = Hardened("credit", folder / "hardened", None)
    model.load()
    asked = InferInput("rows", [6, 20], "FP32")
    asked.set_data_from_numpy(rows.numpy(), binary_data=False)
    answer = asyncio.run(model.predict(InferRequest("credit", [asked])))
    found = torch.from_numpy(answer.outputs[0].as_numpy())
    print(f"answers as the shield: {torch.equal(found, shield(rows))}")

    asked.set_data_from_numpy((rows * float("nan")).numpy(), binary_data=False)
    try:
        asyncio.run(model.predict(InferRequest("credit", [asked])))
    except InvalidInput as refused:
        print(f"refused: {refused}")


if __name__ == "__main__":
    if sys.argv[1:]:
        served = Hardened("credit", *sys.argv[1:])
        served.load()
        ModelServer().start([served])
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
