"""Files made by an adversary, each played to the end: nothing is written, read or run."""

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from shell import shieldnet
from torch import nn

from shieldnet.core.errors import DataError
from shieldnet.files.sources import load_guarantee, load_model
from shieldnet.files.weights import read_weights

BATCHES = ({0: torch.export.Dim("batch", min=1)},)


class Harmless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.ones(3)

    @torch.jit.export
    def __getstate__(self):
        return self.secret, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.secret = state[0]
        self.training = state[1]

    def forward(self, inputs):
        return inputs + self.secret


def hostile_script(path: Path, target: Path) -> Path:
    """Writes TorchScript whose ``__setstate__`` saves a tensor; no search for ``save`` finds it."""
    plain = path.parent / "plain.zip"
    torch.jit.save(torch.jit.script(Harmless()), plain)
    call = f'    _0 = getattr(torch, "sa\\166e")((state)[0], {json.dumps(str(target))})\n'
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(path, "w") as made:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".py"):
                before, setting, after = content.decode().rpartition("    self.secret = (state)[0]")
                content = f"{before}{call}{setting}{after}".encode()
            made.writestr(name, content)
    return path


@pytest.mark.parametrize("suffix", [".ts", ".pt", ".torchscript", ".pt2", ".bin"])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_that_writes_a_file_while_it_is_loaded_writes_none(tmp_path, suffix) -> None:
    target = tmp_path / "written"
    path = hostile_script(tmp_path / f"model{suffix}", target)
    with pytest.raises(DataError, match=r"is TorchScript, which can write .* torch\.export\.save"):
        load_model(str(path))
    assert not target.exists()
    if suffix == ".ts":  # the trap is real: this is what torch does with it
        torch.jit.load(path)
        assert target.exists()


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Writes an exported program anew whose parts were changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(f"{path.stem}/{name}", data)
    return path


def calling(target: str, arguments: list[dict]) -> Callable[[dict[str, bytes]], None]:
    """Puts another operator in the place of a program's first one."""

    def change(parts: dict[str, bytes]) -> None:
        program = json.loads(parts["models/model.json"])
        node = program["graph_module"]["graph"]["nodes"][0]
        named = [{"name": name, "arg": value, "kind": 1} for name, value in arguments]
        node["target"], node["inputs"] = target, named
        parts["models/model.json"] = json.dumps(program).encode()

    return change


X = {"as_tensor": {"name": "x"}}


@pytest.mark.parametrize(
    ("target", "arguments", "words"),
    [
        (
            "_convert_indices_from_csr_to_coo.default",
            [("crow_indices", X)],
            "only plain torch operators",
        ),
        ("segment_reduce.default", [("data", X), ("unsafe", {"as_bool": True})], "only plain"),
        ("_fft_c2r.default", [("self", X), ("last_dim_size", {"as_int": 2**24})], "only plain"),
        ("_embedding_bag.default", [("weight", X)], "does not check its offsets"),
        ("_unsafe_index.Tensor", [("self", X)], "only plain torch operators"),
        (
            "as_strided.default",
            [("self", X), ("size", {"as_ints": [9]})],
            "only plain torch operators",
        ),
        (
            "resize_.default",
            [("self", X), ("size", {"as_ints": [9]})],
            "only plain torch operators",
        ),
        ("set_.source_Tensor", [("self", X), ("source", X)], "only plain torch operators"),
        ("from_file.default", [("filename", {"as_string": "x"})], "only plain torch operators"),
        ("empty.memory_format", [("size", {"as_ints": [9]})], "only plain torch operators"),
        ("item.default", [("self", X)], "values of a tensor must not become sizes"),
        ("rand_like.default", [("self", X)], "answers are random. Call model.eval"),
        ("bernoulli.p", [("self", X), ("p", {"as_float": 0.5})], "answers are random"),
        ("native_dropout.default", [("input", X)], "answers are random. Call model.eval"),
        (
            "dropout.default",
            [("input", X), ("train", {"as_bool": True})],
            "are random, as in training",
        ),
        (
            "batch_norm.default",
            [("input", X), ("training", {"as_bool": True})],
            "batch statistics",
        ),
        ("_native_batch_norm_legit.default", [("input", X)], "depend on its batch"),
        ("relu.default", [("self", {"as_graph": {"name": "g"}})], "must be a tensor, a number"),
        ("full.default", [("size", {"as_ints": [2**20, 2**20]})], "at most 1073741824 numbers"),
        ("ones.default", [("layout", {"as_layout": 1})], "only dense tensors"),
        ("conv2d.default", [("stride", {"as_ints": [2**40, 1]})], "numbers of at most 65536"),
        ("embedding.default", [("weight", X), ("sparse", {"as_bool": True})], "sparse=False"),
        ("grid_sampler.default", [("interpolation_mode", {"as_int": 9})], "from 0 to 2"),
        ("relu.default", [("self", X), ("self", X)], "gets 'self' twice"),
    ],
)
def test_operators_that_read_or_write_out_of_bounds_are_not_loaded(
    tmp_path, target, arguments, words
) -> None:
    program = torch.export.export(nn.ReLU(), (torch.ones(3),))
    torch.export.save(program, tmp_path / "model.pt2")
    program_file = rewritten(tmp_path / "model.pt2", calling(f"torch.ops.aten.{target}", arguments))
    with pytest.raises(DataError, match=words):
        load_model(str(program_file))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(1, 90, 16))
        self.values = nn.Parameter(torch.randn(1, 90, 16))

    def forward(self, x):
        keys, values = (part.expand(x.shape[0], 90, 16) for part in (self.keys, self.values))
        return nn.functional.scaled_dot_product_attention(x, keys[:, None], values[:, None])


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = getattr(nn, kind)(16, 8, batch_first=True)

    def forward(self, x):
        return self.layers(x.flatten(1, 2))[0]


def shrunk(name: str, axis: int) -> Callable[[dict[str, bytes]], None]:
    """Says that a weight has one row where the program was made for many."""

    def change(parts: dict[str, bytes]) -> None:
        config = json.loads(parts["data/weights/model_weights_config.json"])
        config["config"][name]["tensor_meta"]["sizes"][axis] = {"as_int": 1}
        parts["data/weights/model_weights_config.json"] = json.dumps(config).encode()
        program = json.loads(parts["models/model.json"])
        values = program["graph_module"]["graph"]["tensor_values"]
        for spec in program["graph_module"]["signature"]["input_specs"]:
            for value in spec.values():
                if name in (value.get("parameter_name"), value.get("buffer_name")):
                    values[value["arg"]["name"]]["sizes"][axis] = {"as_int": 1}
        text = json.dumps(program)  # an expand to the old size would be refused by torch itself
        parts["models/model.json"] = text.encode()

    return change


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:`isinstance.treespec")
@pytest.mark.parametrize(
    ("make", "name", "axis", "is_core"),
    [
        (lambda: nn.BatchNorm2d(1), "running_mean", 0, True),
        (lambda: Recurrent("LSTM"), "layers.weight_hh_l0", 0, False),
        (lambda: Recurrent("GRU"), "layers.bias_ih_l0", 0, False),
    ],
)
def test_weights_that_are_smaller_than_an_operator_expects_are_never_read_past_their_end(
    tmp_path, make, name, axis, is_core
) -> None:
    torch.manual_seed(0)
    model = make() if not is_core else nn.BatchNorm2d(3)
    example = torch.randn(4, 3 if is_core else 1, 5, 16)
    program = torch.export.export(model.eval(), (example,), dynamic_shapes=BATCHES)
    program = program.run_decompositions() if is_core else program
    torch.export.save(program, tmp_path / "model.pt2")
    assert load_model(str(tmp_path / "model.pt2"))(example).shape[0] == 4
    hostile = load_model(str(rewritten(tmp_path / "model.pt2", shrunk(name, axis))))
    with pytest.raises(DataError, match="The program is damaged: .* expects"):
        hostile(example)


def test_attention_to_more_keys_than_values_is_never_read_past_their_end(tmp_path) -> None:
    class Cuts(Attention):
        def forward(self, x):
            keys, values = self.keys[:, None], self.values[:, None]
            return nn.functional.scaled_dot_product_attention(x, keys, values)

    example = torch.randn(1, 1, 5, 16)
    torch.export.save(torch.export.export(Cuts(), (example,)), tmp_path / "model.pt2")
    assert load_model(str(tmp_path / "model.pt2"))(example).shape == (1, 1, 5, 16)
    hostile = load_model(str(rewritten(tmp_path / "model.pt2", shrunk("values", 1))))
    with pytest.raises(DataError, match="expects as many values as keys"):
        hostile(example)


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:`isinstance.treespec")
def test_a_program_that_changes_its_own_weights_is_refused(tmp_path) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count.add_(1)
            return x + self.count

    program = torch.export.export(Counts(), (torch.ones(3),))
    torch.export.save(program, tmp_path / "plain.pt2")
    torch.export.save(program.run_decompositions(), tmp_path / "core.pt2")
    with pytest.raises(DataError, match="changes its own weights"):
        load_model(str(tmp_path / "plain.pt2"))(torch.ones(3))
    with pytest.raises(DataError, match="changes its own weights"):
        load_model(str(tmp_path / "core.pt2"))


def onnx_model(nodes: list, path: Path, **settings) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], settings.pop("initializer", []))
    domains = ("", "ai.onnx.ml", "com.microsoft", "mine")
    opsets = [helper.make_opsetid(name, 18 if not name else 1) for name in domains]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9, **settings)
    path.write_bytes(made.SerializeToString())
    return path


def branch(name: str, *nodes) -> onnx.GraphProto:
    end = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([*nodes], name, [], [end])


def hidden_in_branches(*nodes) -> list:
    true = numpy_helper.from_array(torch.ones(()).bool().numpy())
    plain = branch("b", helper.make_node("Identity", ["x"], ["b"]))
    inner = helper.make_node(
        "If", ["c"], ["a"], then_branch=branch("y2", *nodes), else_branch=plain
    )
    outer = branch("a", inner)
    return [
        helper.make_node("Constant", [], ["c"], value=true),
        helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=plain),
    ]


LOOP = helper.make_graph(
    [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])],
    "body",
    [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
    ],
    [
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
    ],
)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([helper.make_node("Loop", ["", "", "x"], ["y"], body=LOOP)], "loops are refused"),
        ([helper.make_node("Identity", ["x"], ["y"], body=LOOP)], "a graph inside 'Identity'"),
        (
            hidden_in_branches(helper.make_node("RandomUniformLike", ["x"], ["y2"])),
            "RandomUniformLike in training mode",
        ),
        (
            hidden_in_branches(helper.make_node("Open", ["x"], ["y2"], domain="mine")),
            "calls mine.Open: only operators of ai.onnx",
        ),
        ([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], "com.microsoft.Gelu"),
        ([helper.make_node("Bernoulli", ["x"], ["y"])], "calls Bernoulli in training mode"),
        (
            [helper.make_node("Dropout", ["x", "", "train"], ["y"])],
            "calls Dropout in training mode",
        ),
        ([helper.make_node("ImageDecoder", ["x"], ["y"])], "not on the list"),
    ],
)
def test_onnx_with_loops_noise_or_operators_of_others_is_refused(tmp_path, nodes, words) -> None:
    path = onnx_model(nodes, tmp_path / "model.onnx")
    with pytest.raises(DataError, match=words):
        load_model(str(path))


def test_onnx_functions_of_the_files_own_hide_nothing(tmp_path) -> None:
    noise = helper.make_function(
        "mine", "Noise", ["x"], ["y"],
        [helper.make_node("RandomUniformLike", ["x"], ["y"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    call = helper.make_node("Noise", ["x"], ["y"], domain="mine")
    path = onnx_model([call], tmp_path / "model.onnx", functions=[noise])
    with pytest.raises(DataError, match="defines functions .*inline_local_functions"):
        load_model(str(path))


def test_onnx_runtime_gets_no_settings_from_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    profile = tmp_path / "profile"
    settings = {"session_options": {"enable_profiling": 1, "profile_file_prefix": str(profile)}}
    path = onnx_model([helper.make_node("Relu", ["x"], ["y"])], tmp_path / "model.onnx")
    made = onnx.load(path)
    made.metadata_props.add(key="ort_config", value=json.dumps(settings))
    path.write_bytes(made.SerializeToString())
    model = load_model(str(path))
    assert model(torch.ones(2, 3)).shape == (2, 3)
    assert b"ort_config" not in model.content


DEEP = 200_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("deep.toml", "a = " + "[" * DEEP + "]" * DEEP, "nests more than 200 deep"),
        ("tables.toml", "a = " + "{a=" * DEEP + "1" + "}" * DEEP, "nests more than 200 deep"),
        ("dots.toml", "a" + ".a" * DEEP + " = 1", "nests more than 200 deep"),
        ("digits.toml", "max_leakage = " + "9" * 20_000, "is not valid TOML"),
        ("latin.toml", b"a = '\xe9'", "expected UTF-8"),
        ("wide.toml", "\ufeffmax_leakage = 1".encode("utf-16"), "expected UTF-8"),
        ("deep.json", "[" * DEEP + "]" * DEEP, "nests more than 200 deep"),
        ("objects.json", '{"a":' * DEEP + "1" + "}" * DEEP, "nests more than 200 deep"),
        ("digits.json", '{"schema": ' + "9" * 20_000 + "}", "a number of 20000 digits"),
        ("nan.json", '{"schema": NaN}', "NaN is not a JSON number"),
        ("huge.json", '{"schema": 1e999}', "is too large for a number"),
        ("twice.json", '{"schema": 1, "schema": 2}', "'schema' occurs twice"),
        ("latin.json", b'{"a": "\xe9"}', "expected UTF-8"),
    ],
)
@pytest.mark.parametrize("reader", ["report", "guarantee"])
def test_absurd_documents_are_bad_input_and_no_defect_of_ours(
    tmp_path, monkeypatch, name, content, words, reader
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if name.endswith(".toml"):
        command = ["policy", "check", name]
        if reader == "guarantee":  # of a shield instead
            command = ["harden", "torch:nn.ReLU", "--shield", name, "-o", "out"]
            monkeypatch.setattr("shieldnet.files.sources.load_model", lambda *_: nn.ReLU())
    elif reader == "report":
        command = ["report", name]
    else:
        with pytest.raises(DataError, match=words):
            load_guarantee(Path(name))
        return
    done = shieldnet(tmp_path, *command)
    assert done.returncode == 2, done.stderr
    assert words in " ".join(done.stderr.split())


class Bomb:
    def __reduce__(self):
        return subprocess.check_call, ([sys.executable, "-c", "open('ran', 'w')"],)


@pytest.mark.parametrize(
    "suffix", [".pt", ".bin", ".ckpt", ".pkl", ".safetensors", ".pt2", ".onnx"]
)
@pytest.mark.parametrize("as_weights", [False, True])
def test_pickles_of_any_name_are_never_run(tmp_path, monkeypatch, suffix, as_weights) -> None:
    monkeypatch.chdir(tmp_path)
    Path("users.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 2)\n")
    writers = (
        lambda path: torch.save(Bomb(), path),
        lambda path: torch.save({"a": Bomb()}, path),
        lambda path: path.write_bytes(pickle.dumps(Bomb())),
    )
    for write in writers:
        path = Path(f"model{suffix}")
        write(path)
        with pytest.raises(DataError, match=r"pickle|not a valid safetensors|no ONNX"):
            load_model("users:make", str(path)) if as_weights else load_model(str(path))
    assert not Path("ran").exists()
    sys.modules.pop("users", None)


def test_a_header_of_absurd_length_is_refused_before_it_is_read(tmp_path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    content = bytearray((tmp_path / "w.safetensors").read_bytes())
    for length in (2**63, 2**40, len(content), 0):
        content[:8] = length.to_bytes(8, "little")
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(DataError, match="not a valid safetensors"):
            read_weights(tmp_path / "w.safetensors")


def test_weights_that_grow_when_they_are_unpacked_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shieldnet.files.sizes.MAX_FILE_BYTES", 2**20)
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as archive,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for name in archive.namelist():
            made.writestr(name, archive.read(name))
    assert (tmp_path / "bomb.pt").stat().st_size < 2**16
    with pytest.raises(DataError, match="above the limit of 1048576"):
        read_weights(tmp_path / "bomb.pt")
