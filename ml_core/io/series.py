"""Read one DICOM series from a folder or a ZIP, file by file. Nothing is extracted to disk."""

from __future__ import annotations

import io
import posixpath
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io import dicom
from ml_core.io.containers import ArchiveError, ArchiveLimits, SafeArchive, is_archive, list_folder
from ml_core.io.content import HEAD_BYTES, is_dicom, kind_of
from ml_core.io.geometry import is_placed, stack
from ml_core.io.image import Image, Mask, Notice, check_size, decoding, supported
from ml_core.io.parts import Part, choose_volume, is_localizer, is_mostly_dicom, left_out

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
_BY_NUMBER = Notice(
    "no_position",
    "The slices have no positions (ImagePositionPatient), so they were put in the order of their InstanceNumber.",
)
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


@dataclass(frozen=True)
class Instance:
    """What the header of a DICOM file says of the series that it is part of."""

    series: str
    """SeriesInstanceUID; "" if the header has none."""
    frames: int
    is_localizer: bool


def instance_of(file: BinaryIO) -> Instance:
    """Read the header of one DICOM file. Raises ImageError."""
    with decoding(dicom.WHAT, dicom.CURE):
        header = dicom.open_dataset(file, pixels=False)
        series = str(header.get("SeriesInstanceUID") or "")
        return Instance(series, dicom.frame_count(header), is_localizer(header))


def pack(archive: SafeArchive, names: Sequence[str], target: Path) -> None:
    """Write members of an archive into a ZIP of their own, which `read_image` reads as a series.

    They keep their names below the folder that all of them lie in, so that messages name the user's files. Raises
    ArchiveError.
    """
    folder = posixpath.commonpath([name.rpartition("/")[0] for name in names])
    part = target.with_name("slice")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as series:
        for name in names:
            archive.extract(name, part)
            # The entry has no time of day, so that the same slices give the same bytes in a later version too.
            entry = zipfile.ZipInfo(name[len(folder) :].lstrip("/"))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with part.open("rb") as source, series.open(entry, "w") as out:
                shutil.copyfileobj(source, out)
            part.unlink()


def _read(path: Path, *, raw: bool) -> dicom.Slices:
    with (
        decoding("archive of a DICOM series", "Make the ZIP again, with the files of one series."),
        _members(path) as (members, strangers),
    ):
        parts, notices = _headers(members)
        if strangers:
            notices.append(Notice("not_dicom", f"{left_out(strangers)} (not DICOM)."))
        parts, said_of_parts = choose_volume(parts)
        notices += said_of_parts
        if len(parts) == 1:
            with naming(parts[0].name), parts[0].opened() as file:
                found = dicom.sorted_frames(dicom.open_dataset(file, pixels=True), raw=raw)
            return replace(found, notices=(*notices, *found.notices))
        if not is_placed([part.plane for part in parts]):
            parts = _by_number(parts)
            notices.append(_BY_NUMBER)
        stacked = stack([part.plane for part in parts], [part.name for part in parts])
        parts = [parts[index] for index in stacked.order]
        headers = [part.header for part in parts]
        first = headers[0]
        check_size((len(parts), int(first.Rows), int(first.Columns)))
        volume = _fill(parts, raw=raw)
        said = (*notices, *dicom.burned_in(headers), *stacked.notices)
        source = dicom.source_of(headers, frames=[1])
        return dicom.Slices(volume, stacked.spacing, stacked.affine, first, source, said)


def _headers(members: list[Member]) -> tuple[list[Part], list[Notice]]:
    """Read the headers of a series. Reports, plans and other objects without pixels are left out."""
    parts: list[Part] = []
    others: list[str] = []
    missing: ImageError | None = None
    for name, opened in members:
        try:
            with naming(name), opened() as file:
                parts.append(Part.of(name, opened, dicom.open_dataset(file, pixels=False)))
        except ImageError as error:
            if error.code != "no_pixels":
                raise
            missing = missing or error
            others.append(name)
    if not parts:
        raise missing or _no_dicom()
    if not others:
        return parts, []
    return parts, [Notice("no_pixels", f"{left_out(others)} (no pixels).")]


def _fill(parts: list[Part], *, raw: bool) -> NDArray[Any]:
    """Decode the slices into one volume (C, D, H, W).

    It is filled slice by slice, so that it is in memory only once.
    """
    volume: NDArray[Any] | None = None
    for index, part in enumerate(parts):
        with naming(part.name), part.opened() as file:
            pixels = dicom.decode(dicom.open_dataset(file, pixels=True), raw=raw)
            pixels = pixels if raw else supported(pixels)
        if volume is None:
            volume = np.empty((pixels.shape[0], len(parts), *pixels.shape[1:]), dtype=pixels.dtype)
        if pixels.dtype != volume.dtype:
            # Each slice has the smallest dtype for its values. A slice with a rescale slope of its own can need a
            # wider one than the slices before it.
            wider = np.promote_types(volume.dtype, pixels.dtype)
            volume = volume.astype(np.float32 if wider.kind == "f" else wider, copy=False)
        volume[:, index] = pixels
    assert volume is not None
    return volume


def _by_number(parts: list[Part]) -> list[Part]:
    """Sort slices without position by InstanceNumber, because `stack` keeps the order of such slices.

    Raises ImageError no_position if the numbers are missing or not distinct.
    """
    numbers = [part.header.get("InstanceNumber") for part in parts]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise ImageError(
            "no_position",
            "The slices have neither positions (ImagePositionPatient) nor distinct InstanceNumbers, so their order is "
            "not known.",
            "Save the volume as NIfTI or as a TIFF of several pages.",
        )
    return sorted(parts, key=lambda part: int(part.header.InstanceNumber))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the file's name in front of the reason of every error, since a series has many files."""
    try:
        with decoding(dicom.WHAT, dicom.CURE):
            yield
    except ImageError as error:
        raise ImageError(error.code, f"{name}: {error.reason}", error.cure) from error


@contextmanager
def _members(path: Path) -> Iterator[tuple[list[Member], list[str]]]:
    """Yield the DICOM files, sorted by name, each with a function that opens it, and the names of files to leave out.

    The folder or ZIP is checked against the limits first. Junk and notes are omitted. Raises ImageError not_dicom for
    files of another format, unless most files are DICOM.
    """
    with _as_image_error():
        if path.is_dir():
            files = list_folder(path, LIMITS)
            names, strangers = _parted(list(files), lambda name: files[name].open("rb"))
            yield [(name, _opener(files[name])) for name in names], strangers
            return
        with SafeArchive(path, LIMITS) as archive:
            names, strangers = _parted(sorted(archive.sizes), archive.open)
            yield [(name, partial(_unpacked, archive, name)) for name in names], strangers


def _parted(names: list[str], opened: Callable[[str], IO[bytes]]) -> tuple[list[str], list[str]]:
    kinds = {name: _is_slice(name, partial(opened, name)) for name in names}
    slices, strangers = ([name for name, is_slice in kinds.items() if is_slice is kind] for kind in (True, False))
    if strangers and not is_mostly_dicom(len(slices), len(strangers)):
        raise ImageError("not_dicom", f"{strangers[0]} is not a DICOM file.", ONE_SERIES)
    return slices, strangers


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


def _is_slice(name: str, opened: Callable[[], IO[bytes]]) -> bool | None:
    """Whether a file is DICOM; None for notes and DICOMDIR. Raises ImageError nested_archive for an archive."""
    with naming(name), opened() as file:
        head = file.read(HEAD_BYTES)
    base = name.rpartition("/")[2].lower()
    if base == _DIRECTORY:
        return None
    if is_dicom(base, head):
        return True
    if is_archive(name) or kind_of(head) == "series":
        raise ImageError("nested_archive", f"{name} is an archive inside the archive.", "Unpack it first.")
    return None if base.endswith(_NOTES) else False
