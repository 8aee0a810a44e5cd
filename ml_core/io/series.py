"""Read one DICOM series from a folder or a ZIP, file by file. Nothing is extracted to disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ml_core.errors import ImageError
from ml_core.io import dicom
from ml_core.io.containers import ArchiveError, ArchiveLimits, SafeArchive, is_archive, list_folder
from ml_core.io.formats import suffix_of, suffixes_of
from ml_core.io.geometry import Plane, stack
from ml_core.io.image import Image, Mask, check_size, decoding, supported

# Slices with much background compress well, so the ratio applies to large files only. The total size bounds the rest.
# A file is expanded in memory, so a large one has to keep to the ratio though DICOM is a plain format.
LIMITS = ArchiveLimits(
    max_entries=10_000,
    max_expanded_bytes=4 * 2**30,
    max_file_bytes=4 * 2**30,
    max_plain_ratio=ArchiveLimits.max_ratio,
    ratio_free_file_bytes=256 * 2**20,
    ratio_free_total_bytes=4 * 2**30,
)
ONE_SERIES = "Give only the files of one DICOM series."

_DIRECTORY = "dicomdir"
_NOTES = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".pdf")
_TOO_LARGE = {"too_many_files", "too_large", "file_too_large"}
_CODES = {"damaged_zip": "unreadable", "not_a_zip": "unreadable", "overlap": "unreadable"}

Member = tuple[str, Callable[[], BinaryIO]]


def read_image(path: Path) -> Image:
    """Read a series as a volume sorted along its normal. A series of one file is read like that file.

    Raises ImageError.
    """
    return dicom.to_image(_read(path, raw=False))


def read_mask(path: Path) -> Mask:
    """Read a series of label maps as their stored values, neither rescaled nor inverted. Raises ImageError."""
    return dicom.to_mask(_read(path, raw=True))


def _read(path: Path, *, raw: bool) -> dicom.Slices:
    with (
        decoding("archive of a DICOM series", "Make the ZIP again, with the files of one series."),
        _members(path) as members,
    ):
        headers = [(name, opened, _header(name, opened)) for name, opened in members]
        if not headers:
            raise _no_dicom()
        _check_one_series([header for _, _, header in headers])
        frames = dicom.frame_count(headers[0][2])
        if len(headers) == 1:
            name, opened, _ = headers[0]
            with naming(name), opened() as file:
                return dicom.sorted_frames(dicom.open_dataset(file, pixels=True), raw=raw)
        _check_alike(headers, frames)
        headers = _by_number(headers)
        names = [name for name, _, _ in headers]
        planes: list[Plane] = [dicom.single_plane(header) for _, _, header in headers]
        order, spacing, affine = stack(planes, names)
        first = headers[0][2]
        check_size((len(headers), int(first.Rows), int(first.Columns)))
        volume = _fill([headers[i][:2] for i in order], raw=raw)
        source = dicom.source_of([headers[i][2] for i in order], frames=[1])
        return dicom.Slices(volume, spacing, affine, first, source)


def _fill(members: list[Member], *, raw: bool) -> NDArray[Any]:
    """Decode the slices into one volume (C, D, H, W).

    It is filled slice by slice, so that it is in memory only once.
    """
    volume: NDArray[Any] | None = None
    for index, (name, opened) in enumerate(members):
        with naming(name), opened() as file:
            pixels = dicom.decode(dicom.open_dataset(file, pixels=True), raw=raw)
            pixels = pixels if raw else supported(pixels)
        if volume is None:
            volume = np.empty((pixels.shape[0], len(members), *pixels.shape[1:]), dtype=pixels.dtype)
        if pixels.dtype != volume.dtype:
            # Each slice has the smallest dtype for its values. A slice with a rescale slope of its own can need a
            # wider one than the slices before it.
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
    """Sort slices without position by InstanceNumber, because `stack` keeps the order of such slices.

    Raises ImageError no_position if the numbers are missing or not distinct.
    """
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
    """Put the file's name in front of the reason of every error, since a series has many files."""
    try:
        with decoding(dicom.WHAT, dicom.CURE):
            yield
    except ImageError as error:
        raise ImageError(error.code, f"{name}: {error.reason}", error.cure) from error


@contextmanager
def _members(path: Path) -> Iterator[list[Member]]:
    """Yield the names of the DICOM files, sorted, each with a function that opens it.

    The folder or ZIP is checked against the limits first. Junk and notes are omitted.
    """
    with _as_image_error():
        if path.is_dir():
            files = list_folder(path, LIMITS)
            yield [(name, _opener(file)) for name, file in files.items() if _wanted(name, _opener(file))]
            return
        with SafeArchive(path, LIMITS) as archive:
            names = sorted(archive.sizes)
            dicom_names = [name for name in names if _wanted(name, partial(archive.open, name))]
            yield [(name, partial(_unpacked, archive, name)) for name in dicom_names]


@contextmanager
def _as_image_error() -> Iterator[None]:
    """Turn an ArchiveError into an ImageError whose message speaks of a series."""
    try:
        yield
    except ArchiveError as error:
        if error.code in _TOO_LARGE:
            limits = f"at most {LIMITS.max_entries:,} files and {LIMITS.max_expanded_bytes / 2**30:g} GiB are read"
            raise ImageError("archive_too_large", f"The series is too large; {limits}.", ONE_SERIES) from error
        if error.code == "no_files":
            raise _no_dicom() from error
        cure = ONE_SERIES if error.code == "ratio" else error.cure
        raise ImageError(_CODES.get(error.code, error.code), error.reason, cure) from error


def _no_dicom() -> ImageError:
    return ImageError("no_dicom", "There is no DICOM file in it.", ONE_SERIES)


def _opener(file: Path) -> Callable[[], BinaryIO]:
    return lambda: file.open("rb")


def _unpacked(archive: SafeArchive, name: str) -> BinaryIO:
    """Expand a member into memory, because pydicom reads back and forth and a ZIP member is slow to rewind."""
    with archive.open(name) as member:
        return io.BytesIO(member.read())


def _wanted(name: str, opened: Callable[[], IO[bytes]]) -> bool:
    """Whether a file belongs to the series: true for DICOM, false for notes and DICOMDIR.

    Raises ImageError nested_archive or not_dicom for any other file.
    """
    with naming(name), opened() as file:
        head = file.read(132)
    base = name.rpartition("/")[2].lower()
    if base == _DIRECTORY:
        return False
    if head[128:132] == b"DICM" or suffix_of(base) in suffixes_of("dicom"):
        return True
    if is_archive(name) or head[:4] == b"PK\x03\x04":
        raise ImageError("nested_archive", f"{name} is an archive inside the archive.", "Unpack it first.")
    if base.endswith(_NOTES):
        return False
    raise ImageError("not_dicom", f"{name} is not a DICOM file.", ONE_SERIES)
