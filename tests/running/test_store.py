from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import shieldnet as sn
from shieldnet.running.store import Cache, cache_in, read_text_array, text_array


def test_arrays_are_read_back_as_they_were_written(tmp_path) -> None:
    cache = Cache(tmp_path / "new")
    assert cache.get("key") is None
    cache.put("key", {"a": np.arange(3.0), "words": text_array({"x": [1, "y"]})})
    found = cache.get("key")
    assert (found["a"] == np.arange(3.0)).all()
    assert read_text_array(found["words"]) == {"x": [1, "y"]}
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"]


def test_a_damaged_or_pickled_file_is_made_again_not_read(tmp_path) -> None:
    cache = Cache(tmp_path)
    (tmp_path / "key.npz").write_bytes(b"PK\x03\x04 cut off")
    assert cache.get("key") is None
    np.savez(tmp_path / "other.npz", x=np.array([print], dtype=object))
    assert cache.get("other") is None


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sn.errors.ConfigError, match="Expected cache to be a folder"):
        cache_in(tmp_path / "file")
    assert cache_in(None) is None


def test_many_may_write_one_file_at_once_and_leave_nothing_behind(tmp_path) -> None:
    cache = Cache(tmp_path / "new")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda place: cache.put("key", {"x": np.full(50, place)}), range(60)))
    assert [path.name for path in cache.folder.iterdir()] == ["key.npz"]
    assert len(set(cache.get("key")["x"].tolist())) == 1
    assert cache.folder.stat().st_mode & 0o077 == 0


def test_a_relative_folder_is_the_callers(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cache_in("kept").folder == tmp_path / "kept"
