"""Makes six more datasets for the comparison, of kinds that the default training was not tuned on.

    python -m benchmarks.peers.more_sets ../shared/data OUT
    python -m benchmarks.peers OUT/*.zip --budget 120 --peers ours plain_bf16

The first argument is the folder of the archives. Three datasets are made from them: every fifth slice of the brains as
PNG, with the whole tumour as the only class; the same tumours as volumes; and the blood cells as JPEG, with only their
nuclei as a class. Three are drawn from fixed seeds: vessels of 1 to 8 pixels on a fundus (20 pictures); one mole in
each picture, under hairs and beside spots that do not count (100); and crowded nuclei (60).
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
Pair = tuple[str, bytes, bytes]
"""The image's file name, the image, and the mask: a NIfTI volume if the image is one, otherwise a PNG."""
# The value of a nucleus in the masks of the blood cells.
NUCLEUS = 255


def encoded(pixels: Pixels, kind: str = "PNG") -> bytes:
    """The pixels as an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=90)
    return file.getvalue()


def as_mask(there: NDArray[np.bool_]) -> bytes:
    """A mask as a PNG of 0 and 255."""
    return encoded(there.astype(np.uint8) * 255)


def brains(data: Path) -> Iterator[tuple[str, nib.Nifti1Image, nib.Nifti1Image]]:
    """Yield name, image and mask of each brain in the folder `data`."""
    with zipfile.ZipFile(data / "brats2015_flair_nifti.zip") as source:
        for name in sorted(
            item for item in source.namelist() if item.startswith("images/") and item.endswith(".nii.gz")
        ):
            image, mask = (
                nib.Nifti1Image.from_bytes(gzip.decompress(source.read(item)))
                for item in (name, name.replace("images/", "masks/"))
            )
            yield Path(name).name.removesuffix(".nii.gz"), image, mask


def brain_slices(data: Path) -> Iterator[Pair]:
    for name, image, mask in brains(data):
        values, tumour = image.get_fdata(dtype=np.float32), np.asarray(mask.dataobj) > 0
        low, high = values.min(), np.percentile(values, 99.8)
        grey = (np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        for index in range(30, 130, 5):
            picture = encoded(np.rot90(grey[:, :, index]).copy())
            yield f"{name}_s{index:03d}.png", picture, as_mask(np.rot90(tumour[:, :, index]))


def brain_volumes(data: Path) -> Iterator[Pair]:
    for name, image, mask in brains(data):
        whole = (np.asarray(mask.dataobj) > 0).astype(np.uint8)
        # nibabel has no types for this.
        tumour: Any = nib.Nifti1Image(whole, mask.affine)  # type: ignore[no-untyped-call]
        yield f"{name}.nii.gz", gzip.compress(image.to_bytes(), 1), gzip.compress(tumour.to_bytes(), 1)


def blood_nuclei(data: Path) -> Iterator[Pair]:
    with zipfile.ZipFile(data / "wbc_cells_colour.zip") as source:
        for name in sorted(item for item in source.namelist() if item.startswith("images/") and item.endswith(".png")):
            picture, mask = (np.asarray(Image.open(io.BytesIO(source.read(item))))
                             for item in (name, name.replace("images/", "masks/")))  # fmt: skip
            yield f"{Path(name).stem}.jpg", encoded(picture, "JPEG"), as_mask(mask == NUCLEUS)


def vessels(data: Path) -> Iterator[Pair]:
    rng, width, height = np.random.default_rng(0), 565, 584
    for index in range(20):
        drawn = Image.new("L", (2 * width, 2 * height))
        pen = ImageDraw.Draw(drawn)
        disc = rng.uniform(0.25, 0.75) * 2 * width, rng.uniform(0.4, 0.6) * 2 * height
        branches = [(*disc, rng.uniform(0, 6.3), rng.uniform(9, 15), 0) for _ in range(int(rng.integers(6, 9)))]
        while branches:
            x, y, angle, thickness, depth = branches.pop()
            for _ in range(int(rng.uniform(25, 60))):
                to = x + 8 * np.cos(angle), y + 8 * np.sin(angle)
                pen.line((x, y, *to), fill=255, width=max(1, round(thickness)))
                (x, y), angle, thickness = to, angle + rng.normal(0, 0.12), thickness * 0.992
            if depth < 6 and thickness > 1.2 and 0 < x < 2 * width and 0 < y < 2 * height:
                branches += [(x, y, angle + side * rng.uniform(0.2, 0.7), thickness * rng.uniform(0.6, 0.85), depth + 1)
                             for side in (-1, 1)]  # fmt: skip
        rows, columns = np.mgrid[:height, :width]
        eye = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < 270**2
        there = (np.asarray(drawn.resize((width, height), Image.Resampling.BOX)) > 100) & eye
        soft = np.asarray(Image.fromarray(there.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1.2))) / 255
        picture = np.array([170, 80, 40]) + cloudy(rng, (height, width), 12)[..., None] * 60
        picture = picture - soft[..., None] * np.array([35, 30, 8]) * rng.uniform(0.5, 1)
        picture = (picture + rng.normal(0, 8, picture.shape)) * eye[..., None]
        yield f"{index:02d}.png", encoded(np.clip(picture, 0, 255).astype(np.uint8)), as_mask(there)


def moles(data: Path) -> Iterator[Pair]:
    rng, width, height = np.random.default_rng(0), 600, 450
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for index in range(100):
        x, y, radius = rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.7) * height, rng.uniform(40, 150)
        distance, direction = np.hypot(rows - y, columns - x), np.arctan2(rows - y, columns - x)
        waves = [rng.normal(0, 0.12) / k * np.cos(k * direction + rng.uniform(0, 6.3)) for k in range(1, 7)]
        inside = radius * (1 + sum(waves)) - distance
        share = 1 / (1 + np.exp(-np.clip(inside / rng.uniform(3, 12), -50, 50)))[..., None]
        skin = np.array([225, 180, 160]) * rng.uniform(0.7, 1.05)
        brown = skin * rng.uniform(0.45, 0.85, 3)
        dim = (np.hypot(rows - height / 2, columns - width / 2) / 400)[..., None] ** 2 * 40
        picture = skin * (1 - share) + brown * share + cloudy(rng, (height, width), 45)[..., None] * 25 - dim
        seen = Image.fromarray(np.clip(picture + rng.normal(0, 5, picture.shape), 0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(seen)
        for _ in range(int(rng.integers(0, 25))):
            x, y, angle, length = (
                rng.uniform(0, width),
                rng.uniform(0, height),
                rng.uniform(0, 6.3),
                rng.uniform(80, 300),
            )
            pen.line((x, y, x + length * np.cos(angle), y + length * np.sin(angle)), fill=(40, 25, 20), width=2)
        for _ in range(int(rng.integers(0, 4))):
            x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(4, 14)
            red, green, blue = (int(part) for part in brown)
            pen.ellipse((x - size, y - size, x + size, y + size), fill=(red, green, blue))
        yield f"mole_{index:03d}.jpg", encoded(np.asarray(seen), "JPEG"), as_mask(inside > 0)


def nuclei(data: Path) -> Iterator[Pair]:
    rng, side = np.random.default_rng(0), 256
    rows, columns = np.mgrid[:side, :side]
    for index in range(60):
        light, there = np.full((side, side), rng.uniform(8, 30)), np.zeros((side, side), bool)
        for _ in range(int(rng.integers(5, 40))):
            (x, y), (a, b), angle = rng.uniform(0, side, 2), rng.uniform(4, 11, 2), rng.uniform(0, np.pi)
            along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
            across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
            nucleus = (along / a) ** 2 + (across / b) ** 2 < 1
            there |= nucleus
            light[nucleus] = np.maximum(light[nucleus], rng.uniform(40, 140))
        blurred = np.asarray(Image.fromarray(light.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5)))
        picture = np.clip(blurred + rng.normal(0, 6, light.shape), 0, 255).astype(np.uint8)
        yield f"nuclei_{index:02d}.png", encoded(picture), as_mask(there)


def cloudy(rng: np.random.Generator, shape: tuple[int, int], knots: int) -> NDArray[np.floating]:
    """Draw smooth random brightness from -0.5 to 0.5. knots: random points per axis."""
    coarse = Image.fromarray((rng.random((knots, knots)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC)).astype(np.float32) / 255 - 0.5


SETS = {
    "brats_slices_png": brain_slices,
    "brats_whole_tumour": brain_volumes,
    "wbc_nuclei_jpeg": blood_nuclei,
    "drawn_vessels": vessels,
    "drawn_moles": moles,
    "drawn_nuclei": nuclei,
}


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, make in SETS.items():
        with zipfile.ZipFile(out / f"{name}.zip", "w") as archive:
            for file, image, mask in make(data):
                archive.writestr(f"images/{file}", image)
                archive.writestr(f"masks/{file if file.endswith('.nii.gz') else Path(file).stem + '.png'}", mask)
        print(out / f"{name}.zip")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
