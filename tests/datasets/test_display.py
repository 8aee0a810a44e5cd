"""Arrays for the screen: decoded once, and not all of them kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from datasets import display
from datasets.display import CACHE_BYTES, display_array, label_array


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The keys that were decoded. An object of the key "3" takes 3/4 of the cache."""
    keys: list[str] = []

    def decode(key: str) -> Any:
        keys.append(key)
        return np.broadcast_to(np.uint8(0), (int(key), CACHE_BYTES // 4))  # no memory is taken

    monkeypatch.setattr(display, "_fetch", lambda key, sha256: key)
    monkeypatch.setattr(display, "read_image", lambda key: key)
    monkeypatch.setattr(display, "display_volume", decode)
    display._arrays.clear()
    yield keys
    display._arrays.clear()


def test_the_arrays_used_last_are_kept_up_to_their_bytes(decoded: list[str]) -> None:
    for key, sha256 in (("1", "a"), ("2", "b"), ("1", "a"), ("2", "c"), ("1", "a"), ("2", "b")):
        assert display_array(key, sha256).shape[0] == int(key)
    assert decoded == ["1", "2", "2", "2"]  # "b" gave way to "c", since "a" was used after it
    assert display._arrays.currsize <= CACHE_BYTES


def test_a_volume_larger_than_the_cache_is_decoded_once_for_its_slices(decoded: list[str]) -> None:
    for _ in range(3):
        assert display_array("9", "huge").nbytes > CACHE_BYTES
    assert decoded == ["9"]
    display_array("1", "small")
    assert list(display._arrays) == [("image", "small")]


def test_what_cannot_be_decoded_is_tried_again(decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(display, "_fetch", lambda key, sha256: pytest.fail("no object"))
        with pytest.raises(pytest.fail.Exception):
            display_array("1", "a")
    assert display_array("1", "a").shape[0] == 1


def test_label_maps_differ_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    class Labels:
        values = np.array([[0, 7], [9, 7]])

    display._arrays.clear()
    monkeypatch.setattr(display, "_fetch", lambda key, sha256: key)
    monkeypatch.setattr(display, "read_mask", lambda path: Labels)
    assert label_array("x", "a", [0, 7, 9], oriented=False).tolist() == [[[0, 1], [2, 1]]]
    assert label_array("x", "a", [9, 0, 7], oriented=False).tolist() == [[[1, 2], [0, 2]]]
    display._arrays.clear()
