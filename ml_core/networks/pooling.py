"""Plan by which strides a network from scratch pools its input, stage by stage."""

from __future__ import annotations

# Pixels per axis that a patch keeps at the coarsest stage.
MIN_PIXELS = 4
MAX_STAGES = 6


def pooling(patch: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the strides and the kernel sizes of each stage, one number per axis.

    The rules are nnU-Net's (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z). `patch` is in pixels per
    axis, `spacing` is the size of a pixel per axis in any unit. Fine axes are halved first, until the spacings of all
    axes differ by less than a factor of two. Until then, kernels have size 1 along the coarse axes. An axis is halved
    only if its size is even and MIN_PIXELS pixels remain. There are at most MAX_STAGES stages.
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
