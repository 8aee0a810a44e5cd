"""Windows that are blended: nothing is left out, nothing counted twice."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ml_core.prediction.windows import blend, starts


@pytest.mark.parametrize(
    ("shape", "window"), [((70, 45), (32, 32)), ((20, 33, 40), (16, 16, 24)), ((32, 32), (32, 32))]
)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_a_network_that_sees_one_pixel_at_a_time_gives_the_same_in_windows(
    shape: tuple[int, ...], window: tuple[int, ...], overlap: float
) -> None:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []

    def run(patches: torch.Tensor) -> torch.Tensor:
        seen.append(len(patches))
        return torch.cat([patches, 1 - patches], 1)

    found = blend(run, image, window, overlap=overlap, at_once=3)
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), torch.cat([image, 1 - image]), atol=2e-3)
    counts = [len(starts(length, size, overlap)) for length, size in zip(shape, window, strict=True)]
    assert sum(seen) == math.prod(counts)
    assert max(seen) <= 3


def test_the_middle_of_a_window_counts_more_than_its_border() -> None:
    counter = iter(range(10))

    def run(patches: torch.Tensor) -> torch.Tensor:
        return torch.full_like(patches, float(next(counter)))  # the first window says 0, the second 1

    row = blend(run, torch.zeros(1, 1, 12), (1, 8), overlap=0.5, at_once=1)[0, 0]
    assert row[0] == 0
    assert row[-1] == 1
    assert bool((row.diff() >= 0).all())


def test_windows_cover_the_length_and_overlap_as_asked() -> None:
    for length in range(8, 60):
        begins = starts(length, 8, 0.5)
        assert begins[0] == 0
        assert begins[-1] == length - 8
        assert all(later - earlier <= 4 for earlier, later in itertools.pairwise(begins))
