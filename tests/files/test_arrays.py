import io
import zipfile

import numpy as np
import pytest

import shieldnet.files.sizes as limits
from shieldnet.core.errors import DataError
from shieldnet.files.arrays import read_npy, read_npz


def header(shape: str, dtype: str = "<f4") -> bytes:
    words = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    padded = words + " " * (63 - (10 + len(words)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


def zipped(path, entries: dict[str, bytes], **settings):
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1", "?", "U3", ">i4"])
def test_what_numpy_wrote_is_read_as_it_was(tmp_path, order, dtype) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype, order=order)
    np.savez(tmp_path / "a.npz", x=array)
    np.savez_compressed(tmp_path / "b.npz", x=array)
    np.save(tmp_path / "a.npy", array)
    for found in (
        read_npz(tmp_path / "a.npz", "members", ["x", "y"])["x"],
        read_npz(tmp_path / "b.npz", "members", ["x"])["x"],
        read_npy(tmp_path / "a.npy", "members"),
    ):
        assert np.array_equal(found, array)
        assert found.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "shape", ["(1000000000000, 1000)", "(3, -4)", "(99,)", f"(0, {2**70})", f"({2**63}, {2**63})"]
)
def test_an_absurd_shape_is_refused_before_memory_is_given(tmp_path, shape) -> None:
    data = header(shape) + bytes(48)
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"states -?\d+ bytes of .* but has|an impossible shape"):
        read_npy(tmp_path / "a.npy", "members")
    zipped(tmp_path / "a.npz", {"x.npy": data})
    with pytest.raises(DataError, match=r"states -?\d+ bytes of .* but has|an impossible shape"):
        read_npz(tmp_path / "a.npz", "members", ["x"])


def test_an_axis_of_zero_hides_no_absurd_one(tmp_path) -> None:
    (tmp_path / "a.npy").write_bytes(header(f"(0, {2**70})"))
    with pytest.raises(DataError, match="an impossible shape"):
        read_npy(tmp_path / "a.npy", "members")


def test_a_bomb_is_refused_by_what_it_declares(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 10_000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000, np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 1000
    with pytest.raises(DataError, match="would take 400128 bytes, above the limit of 10000"):
        read_npz(tmp_path / "a.npz", "members", ["x"])
    np.save(tmp_path / "a.npy", np.zeros(100_000, np.float32))
    with pytest.raises(DataError, match="above the limit of 10000"):
        read_npy(tmp_path / "a.npy", "members")


def test_an_entry_that_holds_more_than_it_declares_is_cut_there(tmp_path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(10_000, np.float32))
    path = zipped(
        tmp_path / "a.npz", {"x.npy": buffer.getvalue()}, compression=zipfile.ZIP_DEFLATED
    )
    data = path.read_bytes()
    size = len(buffer.getvalue()).to_bytes(4, "little")
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, (200).to_bytes(4, "little")))
    with pytest.raises(DataError, match="not a readable archive|but has"):
        read_npz(path, "members", ["x"])


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a\\..\\x.npy", "a/../../x.npy"])
def test_an_entry_that_leads_out_is_refused(tmp_path, name) -> None:
    path = zipped(tmp_path / "a.npz", {"x.npy": header("(0,)"), name: b""})
    with pytest.raises(DataError, match="an entry that leads out of it"):
        read_npz(path, "members", ["x"])


def test_two_entries_of_one_name_are_refused(tmp_path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", b"2")
    with pytest.raises(DataError, match="two entries with one name"):
        read_npz(path, "members", ["x"])


def test_rare_packing_is_refused(tmp_path) -> None:
    path = zipped(tmp_path / "a.npz", {"x.npy": b"1"}, compression=zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="in a rare compression"):
        read_npz(path, "members", ["x"])


@pytest.mark.parametrize("dtype", ["|O", "[('a', '<f4')]", "<c8", "<M8[s]", "|V4", "|S4", "<U0"])
def test_what_is_no_number_is_refused(tmp_path, dtype) -> None:
    described = dtype if dtype.startswith("[") else repr(dtype)
    words = f"{{'descr': {described}, 'fortran_order': False, 'shape': (1,), }}"
    data = b"\x93NUMPY\x01\x00" + (len(words) + 1).to_bytes(2, "little") + words.encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(data + bytes(8))
    with pytest.raises(DataError, match="Expected numbers in|no array of numpy's"):
        read_npy(tmp_path / "a.npy", "members")
