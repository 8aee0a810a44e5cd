"""A folder or a ZIP with one DICOM series: read member by member, nothing extracted to disk."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ml_core.errors import ImageError
from ml_core.io import dicom
from ml_core.io.geometry import Plane, stack
from ml_core.io.image import DICOM_SUFFIXES, LIMITS, Image, Mask, check_archive, check_size, decoding, supported

_JUNK = {".ds_store", "thumbs.db", "desktop.ini", "dicomdir"}
_NOTES = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".pdf")
_ARCHIVES = (".zip", ".gz", ".tgz", ".tar", ".7z", ".rar", ".bz2", ".xz")

Member = tuple[str, Callable[[], BinaryIO]]


def read_image(path: Path) -> Image:
    """Read the series as a volume (D, H, W) sorted along its normal; a series of one file as that file."""
    return dicom.to_image(*_read(path, raw=False))


def read_mask(path: Path) -> Mask:
    """Read a series of label maps, stored values as they are."""
    return dicom.to_mask(*_read(path, raw=True))


def _read(
    path: Path, *, raw: bool
) -> tuple[NDArray[Any], tuple[float, ...] | None, NDArray[np.float64] | None, Dataset]:
    with (
        decoding("archive of a DICOM series", "Make the ZIP again, with the files of one series."),
        _members(path) as members,
    ):
        headers = [(name, opened, _header(name, opened)) for name, opened in members]
        if not headers:
            raise ImageError("no_dicom", "There is no DICOM file in it.", "Give the files of one DICOM series.")
        _check_one_series([header for _, _, header in headers])
        frames = dicom.frame_count(headers[0][2])
        if len(headers) == 1:
            name, opened, _ = headers[0]
            with naming(name), opened() as file:
                dataset = dicom.open_dataset(file, pixels=True)
                return *dicom.frames(dataset, raw=raw), dataset
        _check_alike(headers, frames)
        headers = _by_number(headers)
        names = [name for name, _, _ in headers]
        planes: list[Plane] = [dicom.single_plane(header) for _, _, header in headers]
        order, spacing, affine = stack(planes, names)
        first = headers[0][2]
        check_size((len(headers), int(first.Rows), int(first.Columns)))
        volume = _fill([headers[i][:2] for i in order], raw=raw)
        return volume, spacing, affine, first


def _fill(members: list[Member], *, raw: bool) -> NDArray[Any]:
    """(C, D, H, W), filled slice by slice so that the volume is in memory once."""
    volume: NDArray[Any] | None = None
    for index, (name, opened) in enumerate(members):
        with naming(name), opened() as file:
            pixels = dicom.decode(dicom.open_dataset(file, pixels=True), raw=raw)
            pixels = pixels if raw else supported(pixels)
        if volume is None:
            volume = np.empty((pixels.shape[0], len(members), *pixels.shape[1:]), dtype=pixels.dtype)
        if pixels.dtype != volume.dtype:
            # Slices are narrowed one by one: a slope of its own can make one wider than those before it.
            wider = np.promote_types(volume.dtype, pixels.dtype)
            volume = volume.astype(np.float32 if wider.kind == "f" else wider, copy=False)
        volume[:, index] = pixels
    assert volume is not None
    return volume


def _check_one_series(headers: list[Dataset]) -> None:
    sizes: dict[str, int] = {}
    for header in headers:
        uid = str(header.get("SeriesInstanceUID") or "")
        sizes[uid] = sizes.get(uid, 0) + 1
    if len(sizes) > 1:
        counts = ", ".join(str(n) for n in sorted(sizes.values(), reverse=True)[:5])
        raise ImageError(
            "several_series",
            f"There are {len(sizes)} DICOM series in it (of {counts} files).",
            "Put each series into a ZIP or folder of its own.",
        )


def _check_alike(headers: list[tuple[str, Callable[[], BinaryIO], Dataset]], frames: int) -> None:
    first_name, _, first = headers[0]
    for name, _, header in headers:
        if dicom.frame_count(header) > 1 or frames > 1:
            raise ImageError(
                "mixed_series",
                f"The series has {len(headers)} files and {name if frames == 1 else first_name} alone is a volume.",
                "Give each multi-frame file on its own.",
            )
        for keyword, words in (
            ("Rows", "size"),
            ("Columns", "size"),
            ("SamplesPerPixel", "number of channels"),
        ):
            if header.get(keyword) != first.get(keyword):
                raise ImageError(
                    "mixed_shape",
                    f"{name} has another {words} than {first_name} "
                    f"({header.Rows} x {header.Columns} and {first.Rows} x {first.Columns}).",
                    "Give only the slices of one volume.",
                )


def _by_number(
    headers: list[tuple[str, Callable[[], BinaryIO], Dataset]],
) -> list[tuple[str, Callable[[], BinaryIO], Dataset]]:
    """Sorted by InstanceNumber where slices have no position, so that `stack` can keep the order."""
    if any(dicom.single_plane(header).position is not None for _, _, header in headers):
        return headers
    numbers = [header.get("InstanceNumber") for _, _, header in headers]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise ImageError(
            "no_position",
            "The slices have neither positions (ImagePositionPatient) nor distinct InstanceNumbers, so their order is "
            "not known.",
            "Save the volume as NIfTI or as a TIFF of several pages.",
        )
    return sorted(headers, key=lambda entry: int(entry[2].InstanceNumber))


def _header(name: str, opened: Callable[[], BinaryIO]) -> Dataset:
    with naming(name), opened() as file:
        return dicom.open_dataset(file, pixels=False)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the member's name in front of the reason."""
    try:
        with decoding(dicom.WHAT, dicom.CURE):
            yield
    except ImageError as error:
        raise ImageError(error.code, f"{name}: {error.reason}", error.cure) from error


@contextmanager
def _members(path: Path) -> Iterator[list[Member]]:
    """The series' files by name, each with a function that opens it; guards first, junk left out."""
    if path.is_dir():
        files = []
        for file in path.rglob("*"):
            if file.is_file() and not file.is_symlink():
                files.append((file.relative_to(path).as_posix(), file))
                check_archive(len(files), 0)
        files.sort()
        check_archive(len(files), sum(file.stat().st_size for _, file in files))
        yield [(name, _opener(file)) for name, file in files if _wanted(name, _start_of(file))]
        return
    with zipfile.ZipFile(path) as archive:
        entries = [info for info in archive.infolist() if not info.is_dir()]
        check_archive(len(archive.infolist()), sum(info.file_size for info in entries))
        members: list[Member] = []
        for info in sorted(entries, key=lambda entry: entry.filename):
            name = info.filename
            if info.flag_bits & 1:
                raise ImageError("encrypted", f"{name} is encrypted.", "Make the ZIP without a password.")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ImageError("link", f"{name} is a link.", "Put the file itself into the ZIP.")
            # zipfile bounds the memory of these two only: one read of another kind can expand to gigabytes.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                cure = "Zip it with the usual method, Deflate."
                raise ImageError("compression_method", f"{name} is packed with an unusual method.", cure)
            if info.file_size > max(LIMITS.archive_free_bytes, LIMITS.archive_ratio * info.compress_size):
                reason = f"{name} expands to more than {LIMITS.archive_ratio} times its size."
                raise ImageError("ratio", reason, "Give only the slices of one volume.")
            with naming(name), archive.open(info) as start:
                head = start.read(132)
            if _wanted(name, head):
                members.append((name, _unpacker(archive, info)))
        yield members


def _opener(file: Path) -> Callable[[], BinaryIO]:
    return lambda: file.open("rb")


def _unpacker(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    # zipfile never gives more than the declared size, which check_archive has summed up.
    return lambda: io.BytesIO(archive.read(info))


def _start_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(132)


def _wanted(name: str, head: bytes) -> bool:
    """True for DICOM, False for junk and notes; anything else is refused by name."""
    base = name.rsplit("/", 1)[-1].lower()
    if "__macosx/" in name.lower() or base.startswith("._") or base in _JUNK:
        return False
    if head[128:132] == b"DICM" or base.endswith(DICOM_SUFFIXES):
        return True
    if base.endswith(_ARCHIVES) or head[:4] == b"PK\x03\x04":
        raise ImageError("nested_archive", f"{name} is an archive inside the archive.", "Unpack it first.")
    if base.endswith(_NOTES):
        return False
    raise ImageError("not_dicom", f"{name} is not a DICOM file.", "Give only the files of one DICOM series.")
