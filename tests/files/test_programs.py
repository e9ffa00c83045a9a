"""Programs of torch's own: what a plain one needs is read, and nothing else runs."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import shieldnet as sn
from shieldnet.attacks import Inversion, Membership
from shieldnet.attacks.adversary.decoders import Ridge
from shieldnet.core.errors import DataError
from shieldnet.files.programs import load_program
from shieldnet.files.sources import load_model

BATCHES = ({0: torch.export.Dim("batch", min=1)},)


class Mixed(nn.Module):
    """Holds most of what a classifier is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.TransformerEncoderLayer(16, 2, batch_first=True)
        self.head = nn.Linear(16, 10)
        self.register_buffer("shift", torch.ones(1))

    def forward(self, pictures):
        found = self.norm(self.convolution(pictures)).relu().flatten(2)[:, :, :16]
        found = torch.einsum("nct,nct->nct", found, found)
        return self.head(self.attention(found).mean(1)) + self.shift


def exported(model: nn.Module, path: Path, batch: int | None = None) -> Path:
    size = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    example = torch.randn(batch or 4, 1, 8, 8)
    torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes=size), path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return exported(model, tmp_path_factory.mktemp("programs") / "plain.pt2")


def rewritten(path: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Writes an archive whose parts were changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in parts.items():
            archive.writestr(f"{target.stem}/{name}", data)
    return target


def in_program(change: Callable[[dict], object]) -> Callable[[dict[str, bytes]], None]:
    def changed(parts: dict[str, bytes]) -> None:
        program = json.loads(parts["models/model.json"])
        change(program)
        parts["models/model.json"] = json.dumps(program).encode()

    return changed


@pytest.mark.parametrize("make", [Mixed, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))])
def test_an_exported_program_answers_as_its_model(tmp_path, make) -> None:
    model = make().eval()
    loaded = load_program(exported(model, tmp_path / "model.pt2"))
    for rows in (1, 2, 7):
        inputs = torch.randn(rows, 1, 8, 8)
        assert torch.allclose(loaded(inputs), model(inputs), atol=1e-5)
    assert loaded.train() is loaded
    assert not loaded.eval().training
    assert sum(one.numel() for one in loaded.parameters()) == sum(
        one.numel() for one in model.parameters()
    )


class Recurrent(nn.Module):
    def __init__(self, kind: str, **settings) -> None:
        super().__init__()
        self.layers = getattr(nn, kind)(8, 6, 2, batch_first=True, bidirectional=True, **settings)

    def forward(self, pictures):
        return self.layers(pictures[:, 0])[0].mean(1)


class Upsampling(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.MaxPool2d(2),
            nn.Dropout(),
            nn.ConvTranspose2d(4, 3, 2, stride=2),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )


class Attending(nn.Module):
    def forward(self, pictures):
        mask = torch.ones(8, 8).tril().bool()
        return nn.functional.scaled_dot_product_attention(pictures, pictures, pictures, mask)


class Counting(nn.Module):
    """Asks for one-hot codes, whose core form checks them with words of its own."""

    def forward(self, pictures):
        return nn.functional.one_hot(pictures.flatten(1).argmax(-1), 64).float()


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:`isinstance.treespec")
@pytest.mark.parametrize(
    ("make", "is_core"),
    [
        (lambda: Recurrent("LSTM"), False),
        (lambda: Recurrent("LSTM", proj_size=3), False),
        (lambda: Recurrent("GRU", bias=False), False),
        (lambda: Recurrent("RNN", nonlinearity="relu"), False),
        (Upsampling, False),
        (Upsampling, True),
        (Attending, False),
        (Counting, True),
    ],
)
def test_operators_that_are_checked_before_every_call_answer_as_they_did(
    tmp_path, make, is_core
) -> None:
    model = make().eval()
    program = torch.export.export(model, (torch.randn(4, 1, 8, 8),), dynamic_shapes=BATCHES)
    program = program.run_decompositions() if is_core else program
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = load_program(tmp_path / "model.pt2")
    for rows in (1, 3):
        inputs = torch.randn(rows, 1, 8, 8)
        assert torch.allclose(loaded(inputs), model(inputs), atol=1e-5)


def test_one_of_a_fixed_batch_says_how_to_export_it(tmp_path) -> None:
    loaded = load_program(exported(Mixed(), tmp_path / "model.pt2", batch=4))
    assert loaded(torch.randn(4, 1, 8, 8)).shape == (4, 10)
    with pytest.raises(DataError, match=r"equal to 4, but got 3.* it for any: torch\.export"):
        loaded(torch.randn(3, 1, 8, 8))


def test_it_still_has_gradients(plain) -> None:
    inputs = torch.randn(2, 1, 8, 8, requires_grad=True)
    load_program(plain)(inputs).sum().backward()
    assert inputs.grad.abs().sum() > 0


RAN: list[str] = []


def ran() -> str:
    """What a hostile archive would have run."""
    RAN.append("ran")
    return "ran"


class Bomb:
    def __reduce__(self):
        return ran, ()


def bomb() -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save((Bomb(), {}), buffer)
    return buffer.getvalue()


def set_first(field: str, value: object):
    def change(program: dict) -> None:
        program["graph_module"]["graph"]["nodes"][0][field] = value

    return in_program(change)


def set_size(words: str):
    def change(program: dict) -> None:
        for value in program["graph_module"]["graph"]["tensor_values"].values():
            value["sizes"][0] = {"as_expr": {"expr_str": words, "hint": None}}

    return in_program(change)


def set_tree(kind: str, context: str):
    def change(program: dict) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        leaf = {"type": None, "context": None, "children_spec": []}
        tree = {"type": kind, "context": context, "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([1, tree])

    return in_program(change)


def set_argument_name(words: str):
    def change(program: dict) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [words]

    return in_program(change)


def pickle_weight(parts: dict[str, bytes]) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(parts[name])
    payload = next(iter(config["config"].values()))
    payload["use_pickle"] = True
    parts[f"data/weights/{payload['path_name']}"] = bomb()
    parts[name] = json.dumps(config).encode()


def hostile_constant(prefix: str):
    def change(parts: dict[str, bytes]) -> None:
        payload = {
            "path_name": f"{prefix}0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }
        parts["data/constants/model_constants_config.json"] = json.dumps(
            {"config": {"thing": payload}}
        ).encode()
        parts[f"data/constants/{prefix}0"] = pickle.dumps(Bomb())

    return change


HOME = f"{__name__}.ran"
FACTORY = json.dumps(
    {"default_factory_module": __name__, "default_factory_name": "ran", "dict_context": "[]"}
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pickle_weight, "is pickled; pickles are never read"),
        (hostile_constant("opaque_obj_"), "is not a plain tensor; objects are never unpickled"),
        (hostile_constant("custom_obj_"), "is not a plain tensor; objects are never unpickled"),
        (hostile_constant("tensor_"), "is pickled; pickles are never read"),
        (
            set_first("target", "torch.os.system"),
            "calls 'torch.os.system': only plain torch operators",
        ),
        (set_first("target", "torch.hub.load"), "calls 'torch.hub.load'"),
        (set_first("target", "_operator.methodcaller"), "calls '_operator.methodcaller'"),
        (set_first("target", "#ns:op"), "calls '#ns:op'"),
        (set_first("target", "torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_f"),
        (set_first("target", "torch.ops.mine.op.default"), "calls 'torch.ops.mine.op.default'"),
        (set_first("target", "torch.ops.aten.add.Tensor\n"), "calls"),
        (set_size("__import__('os').getpid()"), "has a size that is not arithmetic"),
        (set_size("exec(chr(49)+chr(50))"), "has a size that is not arithmetic"),
        (set_size("(lambda: 1)()"), "has a size that is not arithmetic"),
        (set_size("Pow(Integer(9), Pow(Integer(9), Integer(9)))"), "a size that is not arithmetic"),
        (set_size("Symbol('s0', __import__('os'))"), "a size that is not arithmetic"),
        (set_size("Integer(" * 500 + "1" + ")" * 500), "has a size that is not arithmetic"),
        (set_tree("collections.defaultdict", FACTORY), "nests its inputs or outputs in"),
        (set_tree("enum.Enum", "null"), "nests its inputs or outputs in 'enum.Enum'"),
        (set_argument_name("x=print(1)"), "has an invalid name: 'x=print"),
        (set_first("name", "a\nimport os"), "has an invalid name"),
        (
            in_program(lambda p: p.update(guards_code=["print(1)"])),
            "guards or objects that contain code",
        ),
        (
            in_program(
                lambda p: p.update(guards_code=["L['x'].size()[0] == L['y'].size()[0] or print(1)"])
            ),
            "guards or objects that contain code",
        ),
        (in_program(lambda p: p.pop("graph_module")), "is damaged, or of another version"),
        (in_program(lambda p: p["schema_version"].update(major=99)), "of another version of torch"),
        (lambda parts: parts.pop("models/model.json"), "no models/model.json in it"),
        (lambda parts: parts.update({"archive_format": b"pt3"}), "is not an exported program"),
        (
            lambda parts: parts.update({"models/model.json": b"[" * 9999}),
            "nests more than 200 deep",
        ),
        (lambda parts: parts.update({"models/model.json": b"[]"}), "expected an object, got list"),
        (lambda parts: parts.update({"../x": b""}), "an entry that leads out of it"),
        (lambda parts: parts.update({"data/weights/weight_0": b"short"}), "is damaged"),
    ],
)
def test_what_is_more_than_a_plain_program_is_refused_and_never_run(
    plain, tmp_path, change, words
) -> None:
    RAN.clear()
    path = rewritten(plain, tmp_path / "hostile.pt2", change)
    with pytest.raises(DataError, match=words):
        load_program(path)(torch.randn(2, 1, 8, 8))
    assert RAN == []


def test_torch_itself_would_have_run_some_of_these(plain, tmp_path) -> None:
    """The traps are real: this is what the checks are for."""
    RAN.clear()
    path = rewritten(plain, tmp_path / "hostile.pt2", pickle_weight)
    with pytest.raises(Exception, match="."):
        torch.export.load(path)
    assert RAN == ["ran"]


def test_sample_inputs_are_never_looked_at(plain, tmp_path) -> None:
    RAN.clear()
    change = lambda parts: parts.update({"data/sample_inputs/model.pt": bomb()})  # noqa: E731
    path = rewritten(plain, tmp_path / "hostile.pt2", change)
    assert load_program(path)(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert RAN == []


TINY = sn.Tier("tiny", (Inversion(decoders=(Ridge(),)), Membership()))


def test_an_audit_of_the_file_finds_what_an_audit_of_the_model_finds(
    digits_model, digits_split, tmp_path
) -> None:
    path = exported(digits_model, tmp_path / "model.pt2")
    sets = {name: getattr(digits_split, name) for name in ("members", "nonmembers", "auxiliary")}
    reports = [
        sn.audit(sn.harden(model), **sets, tier=TINY, shadows=0)
        for model in (digits_model, load_model(str(path)))
    ]
    for one, other in zip(reports[0]["bare"].findings, reports[1]["bare"].findings, strict=True):
        assert one.name == other.name
        assert other.value == pytest.approx(one.value, abs=1e-3)
