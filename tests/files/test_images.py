import numpy as np
import pytest
from PIL import Image

import shieldnet.files.sizes as limits
from shieldnet.core.errors import DataError
from shieldnet.files.images import read_images


def draw(path, mode="L", size=(6, 4), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    draw(root / "dog" / "b.png", value=255)
    draw(root / "cat" / "a.png", value=51)
    draw(root / "cat" / "b.bmp", value=0)
    (root / ".DS_Store").write_text("hidden")
    (root / "cat" / ".hidden").write_text("hidden")
    return root


def test_classes_are_the_folders_names(folder) -> None:
    inputs, labels = read_images(folder, "members")
    assert inputs.shape == (3, 1, 4, 6)
    assert inputs.dtype == np.float32
    assert labels.tolist() == ["cat", "cat", "dog"]
    assert inputs[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0, 1])


def test_a_folder_without_a_image_is_named(folder) -> None:
    (folder / "__pycache__").mkdir()
    with pytest.raises(DataError, match="__pycache__ contains no image of the members"):
        read_images(folder, "members")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_one_colored_image_makes_all_of_them_colored(folder, mode) -> None:
    draw(folder / "cat" / f"c.{'jpg' if mode == 'CMYK' else 'png'}", mode)
    assert read_images(folder, "members")[0].shape == (4, 3, 4, 6)


def test_sixteen_bits_keep_their_range(tmp_path) -> None:
    values = np.array([[0, 65535]], np.uint16)
    (tmp_path / "p" / "a").mkdir(parents=True)
    Image.fromarray(values).save(tmp_path / "p" / "a" / "x.png")
    assert read_images(tmp_path / "p", "members")[0].tolist() == [[[[0, 1]]]]


def test_sizes_must_agree(folder) -> None:
    draw(folder / "dog" / "c.png", size=(7, 4))
    with pytest.raises(DataError, match="images of one size in .*, got 6 x 4, 7 x 4: resize"):
        read_images(folder, "members")


def test_links_that_lead_out_are_not_followed(folder, tmp_path) -> None:
    outside = draw(tmp_path / "secret" / "x.png")
    (folder / "dog" / "link.png").symlink_to(outside)
    with pytest.raises(DataError, match="link.png is a link that leads out of"):
        read_images(folder, "members")
    (folder / "dog" / "link.png").unlink()
    (folder / "wolf").symlink_to(outside.parent)
    with pytest.raises(DataError, match="wolf is a link that leads out of"):
        read_images(folder, "members")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("dog/notes.txt", b"hello", "among the members, got dog/notes.txt"),
        ("lone.png", b"", "Expected a folder for each class in .*, got lone.png"),
        ("dog/x.png", b"", "is not a readable image"),
        ("dog/x.png", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "is not a readable image"),
        ("dog/x.png", b"%!PS-Adobe-3.0 EPSF-3.0", "is not a readable image"),
    ],
)
def test_what_is_no_image_is_named(folder, name, content, words) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_images(folder, "members")


def test_a_cut_image_is_damaged(folder) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 6), dtype=np.uint8)
    path = folder / "dog" / "z.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="damaged image|no image"):
        read_images(folder, "members")


def test_bombs_are_refused_by_their_headers(folder, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 200)
    with pytest.raises(DataError, match="would take 288 bytes, above the limit of 200"):
        read_images(folder, "members")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="is not a readable image: Image size"):
        read_images(folder, "members")


def test_an_empty_folder_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="Expected .*/CLASS/IMAGE.png for the members, got no"):
        read_images(tmp_path, "members")
