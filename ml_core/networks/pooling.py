"""How a network from scratch halves its input, stage by stage."""

from __future__ import annotations

MIN_PIXELS = 4  # of a patch's axis at the coarsest stage
MAX_STAGES = 6


def pooling(patch: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[list[list[int]], list[list[int]]]:
    """(strides, kernels) of each stage, one number per axis, as in nnU-Net (Isensee 2021).

    The finest axes are halved first, until all are alike within a factor of two; until then no kernel reaches across the coarse
    ones. An axis is halved while its size is even and leaves MIN_PIXELS pixels; there are MAX_STAGES at most.
    """
    axes = range(len(patch))
    size, step = list(patch), list(spacing)
    reaches = [False] * len(patch)
    strides, kernels = [[1] * len(patch)], []
    while True:
        reaches = [reaches[axis] or step[axis] < 2 * min(step) for axis in axes]
        kernels.append([3 if reaches[axis] else 1 for axis in axes])
        possible = [axis for axis in axes if size[axis] % 2 == 0 and size[axis] >= 2 * MIN_PIXELS]
        if not possible or len(strides) == MAX_STAGES:
            return strides, kernels
        finest = min(step[axis] for axis in possible)
        stride = [2 if axis in possible and step[axis] < 2 * finest else 1 for axis in axes]
        size = [length // by for length, by in zip(size, stride, strict=True)]
        step = [length * by for length, by in zip(step, stride, strict=True)]
        strides.append(stride)
