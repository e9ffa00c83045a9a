"""Nothing but clear errors, whatever file is given as data or as a model.

Ten thousand cases of each: pytest tests -k fuzz --hypothesis-profile=fuzz
"""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzzing import relaxed, with_another_value
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save
from torch import nn

from shieldnet.core.errors import DataError, ShieldnetError
from shieldnet.files.sources import load_examples, load_model
from shieldnet.files.weights import load_weights, read_weights


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(entries) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def made(suffix: str) -> bytes:
    """Returns a valid file."""
    buffer = io.BytesIO()
    inputs, labels = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4)
    if suffix == ".npz":
        np.savez_compressed(buffer, x=inputs, y=labels)
    elif suffix == ".npy":
        np.save(buffer, inputs)
    elif suffix == ".csv":
        buffer.write(b"a,b,label\n1,2.5,0\n-3,1e3,1\n4,0,2\n")
    elif suffix == ".parquet":
        pq.write_table(pa.table({"a": [1, 2, 3], "b": [0.5, 1, 2], "label": [0, 1, 0]}), buffer)
    elif suffix == ".onnx":
        node = helper.make_node("Relu", ["x"], ["y"])
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")
        ]
        opsets = [helper.make_opsetid("", 18)]
        graph = helper.make_graph([node], "g", ends[:1], ends[1:])
        buffer.write(
            helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
        )
    elif suffix == ".pt":
        torch.save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, buffer)
    elif suffix == ".safetensors":
        buffer.write(save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}))
    else:
        size = ({0: torch.export.Dim("batch", min=1)},)
        model = nn.Linear(3, 2).eval()
        torch.export.save(
            torch.export.export(model, (torch.randn(4, 3),), dynamic_shapes=size), buffer
        )
    return buffer.getvalue()


DATA = (".npz", ".npy", ".csv", ".parquet")
MODELS = (".onnx", ".pt2")
WEIGHTS = (".pt", ".safetensors")
VALID = {suffix: made(suffix) for suffix in (*DATA, *MODELS, *WEIGHTS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read(path: Path, content: bytes) -> None:
    """Reads examples or a model; what is read is whole and finite, or answers."""
    path.write_bytes(content)
    try:
        if path.suffix in MODELS:
            load_model(str(path))(torch.randn(2, 3))
            return
        if path.suffix in WEIGHTS:
            load_weights(nn.Linear(3, 2), path, "linear")
            return
        found = load_examples(str(path), "members")
    except ShieldnetError:
        return
    assert len(found.examples) > 0
    assert torch.isfinite(found.examples.inputs).all()
    assert len(found.columns) in (0, found.examples.inputs.shape[1])
    assert found.examples.labels is None or not found.examples.labels.is_floating_point()


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """Flips, cuts, doubles or overwrites parts of a valid file."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("flip", "write", "cut", "insert", "double")))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            data[place : place + 8] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=16))
        else:
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
    return bytes(data)


def test_a_damaged_tensor_in_a_file_of_weights_is_named(folder) -> None:
    content, path = bytearray(VALID[".pt"]), folder / "damaged.pt"
    place = content.index(b"archive/data/1")
    content[place - 30 : place - 26] = b"ZZZZ"  # the header of its record
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is damaged"):
        load_weights(nn.Linear(3, 2), path, "linear")


@pytest.mark.parametrize("suffix", VALID)
def test_the_valid_files_are_read(folder, suffix) -> None:
    path = folder / f"valid{suffix}"
    path.write_bytes(VALID[suffix])
    if suffix in WEIGHTS:
        assert read_weights(path)["weight"].shape == (2, 3)
    elif suffix in DATA:
        assert load_examples(str(path), "members").examples.inputs.shape[1] in (2, 3)
    else:
        assert load_model(str(path))(torch.randn(2, 3)).shape[0] == 2


@pytest.mark.parametrize("suffix", VALID)
@given(content=st.binary(max_size=200))
@relaxed
def test_fuzz_any_bytes(folder, suffix, content) -> None:
    read(folder / f"any{suffix}", content)


@pytest.mark.parametrize("suffix", VALID)
@given(data=st.data())
@relaxed
def test_fuzz_damaged_files(folder, suffix, data) -> None:
    read(folder / f"damaged{suffix}", data.draw(damaged(VALID[suffix])))


HOSTILE = (
    "torch.os.system",
    "torch.ops.aten.from_file.default",
    "torch.ops.higher_order.cond",
    "__import__('os')._exit(3)",
    "Symbol('s0', positive=True)",
    "Mul(Integer(2), Symbol('s0'))",
    "a = 1; import os",
)


def parts_of(document, path=()):
    """Lists the places of a document."""
    yield path
    pairs = document.items() if isinstance(document, dict) else ()
    pairs = enumerate(document) if isinstance(document, list) else pairs
    for key, inner in pairs:
        yield from parts_of(inner, (*path, key))


with zipfile.ZipFile(io.BytesIO(VALID[".pt2"])) as whole:
    PARTS = {name.partition("/")[2]: whole.read(name) for name in whole.namelist()}
TEXTS = ("models/model.json", "data/weights/model_weights_config.json")
PLACES = [
    (text, place)
    for text in TEXTS
    for place in parts_of(json.loads(PARTS[text]))
    if place and "metadata" not in place
]


@given(
    where=st.sampled_from(PLACES),
    value=st.one_of(
        st.sampled_from(HOSTILE),
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.text(max_size=4),
        st.lists(st.integers(0, 3), max_size=2),
        st.dictionaries(st.sampled_from(("as_int", "as_expr", "as_string")), st.integers(0, 9)),
    ),
    drop=st.booleans(),
)
@relaxed
def test_fuzz_programs_with_another_value_somewhere(folder, where, value, drop) -> None:
    text, place = where
    document = with_another_value(PARTS[text], place, value, drop)
    changed = PARTS | {text: json.dumps(document).encode()}
    read(folder / "made.pt2", zipped((f"made/{name}", data) for name, data in changed.items()))


names = st.sampled_from(("x.npy", "y.npy", "z.npy", "../x.npy", "/x.npy", "x", "x.npy/", "é.npy"))
headers = st.builds(
    lambda descr, order, shape: (
        f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    ),
    st.sampled_from(("'<f4'", "'|O'", "'<i8'", "'|b1'", "'<U2'", "[('a', '<f4')]", "'<f16'", "3")),
    st.sampled_from(("True", "False", "1", "None")),
    st.lists(st.integers(-2, 2**66) | st.integers(0, 3), max_size=4).map(lambda n: str(tuple(n))),
)
entries = st.one_of(
    st.just(VALID[".npy"]),
    st.binary(max_size=80),
    damaged(VALID[".npy"]),
    st.builds(
        lambda words, body: b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words + body,
        headers,
        st.binary(max_size=64),
    ),
)


@given(found=st.lists(st.tuples(names, entries), max_size=4, unique_by=lambda pair: pair[0]))
@relaxed
def test_fuzz_archives_put_together(folder, found) -> None:
    read(folder / "made.npz", zipped(found))


@given(content=entries)
@relaxed
def test_fuzz_headers_of_arrays(folder, content) -> None:
    read(folder / "made.npy", content)


cells = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=6),
    st.sampled_from(("", "NA", "true", '"', "'", "1e999", "label", "y", "\x00", "1;2")),
)


@given(rows=st.lists(st.lists(cells, min_size=1, max_size=4), max_size=5), end=st.text(max_size=2))
@relaxed
def test_fuzz_rows_of_a_table(folder, rows, end) -> None:
    text = "\n".join(",".join(row) for row in rows) + end
    read(folder / "rows.csv", text.encode("utf-8", "replace"))


columns = st.dictionaries(
    st.sampled_from(("a", "b", "label", "y", "é")),
    st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
        st.lists(st.floats(), min_size=2, max_size=2),
        st.lists(st.none() | st.booleans(), min_size=2, max_size=2),
        st.lists(st.text(max_size=3), min_size=2, max_size=2),
        st.lists(st.lists(st.integers(0, 3), max_size=2), min_size=2, max_size=2),
        st.lists(st.dates(), min_size=2, max_size=2),
        st.lists(st.decimals(-9, 9, places=2), min_size=2, max_size=2),
    ),
    min_size=1,
)


@given(table=columns)
@relaxed
def test_fuzz_columns_of_every_kind(folder, table) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer)
    read(folder / "columns.parquet", buffer.getvalue())


def png(size=(5, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


pictures = st.one_of(st.binary(max_size=100), damaged(png()), st.just(png()), st.just(png((3, 3))))


@given(found=st.lists(st.tuples(st.sampled_from(("a", "b")), pictures), min_size=1, max_size=3))
@relaxed
def test_fuzz_folders_of_pictures(tmp_path_factory, found) -> None:
    root = tmp_path_factory.mktemp("pictures")
    for place, (name, content) in enumerate(found):
        (root / name).mkdir(exist_ok=True)
        (root / name / f"{place}.png").write_bytes(content)
    try:
        inputs = load_examples(str(root), "members").examples.inputs
    except ShieldnetError:
        return
    assert inputs.shape[0] == len(found)
    assert 0 <= float(inputs.min()) <= float(inputs.max()) <= 1


def test_the_onnx_that_is_damaged_is_one(folder) -> None:
    onnx.checker.check_model(onnx.load_model_from_string(VALID[".onnx"]))
