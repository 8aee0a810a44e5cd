"""Which images a ZIP of images holds, without masks: pictures, volumes, and DICOM series in folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

from ml_core.dataset import findings
from ml_core.dataset.findings import Issue
from ml_core.dataset.pairing import SILENT, HeadOf, dicom_of
from ml_core.errors import ImageError
from ml_core.io.content import suffix_by_content
from ml_core.io.formats import SUPPORTED_SUFFIXES, suffix_of
from ml_core.io.series import Instance, instance_of


@dataclass(frozen=True)
class ImageEntries:
    """One image of an archive."""

    name: str
    """The path in the archive: that of the file, or the folder of a series if that holds no other DICOM image."""
    entries: tuple[str, ...]
    """The file, or the slices of a series."""
    is_series: bool


@dataclass
class _Folder:
    """The DICOM files of one folder, by what they are part of."""

    series: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """SeriesInstanceUID → files of one frame each."""
    scouts: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    """Files that are images by themselves: of several frames, or unreadable, which their own inference explains."""


def find_images(
    names: Iterable[str], dimensions: int, head_of: HeadOf, opened: Callable[[str], BinaryIO]
) -> tuple[list[ImageEntries], list[Issue]]:
    """Find the images of an archive, sorted by name, for a model of so many dimensions.

    For a model of volumes, the DICOM files of one series in one folder are one image, and scouts beside a series are
    left out. For a model of pictures every file is an image. `opened` opens an entry. Only the headers of DICOM files
    are read. The issues are about files, and about folders with DICOM files.
    """
    images: list[ImageEntries] = []
    issues: list[Issue] = []
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        folder, _, base = name.rpartition("/")
        if SILENT.fullmatch(base) or not _is_image(name, head_of):
            issues.append(findings.NO_IMAGE_FILE.issue(name))
        else:
            folders[folder].append(name)
    for folder, entries in folders.items():
        slices = dicom_of(entries, head_of)
        others = set(entries).difference(slices)
        if dimensions == 3:
            images += _volumes(folder, slices, opened, issues)
        else:
            others.update(slices)
            if len(slices) > 1:
                issues.append(findings.SLICES_ALONE.issue(_shown(folder), count=len(slices)))
        images += [ImageEntries(entry, (entry,), False) for entry in others]
    return sorted(images, key=lambda image: image.name), issues


def _is_image(name: str, head_of: HeadOf) -> bool:
    """By the ending, or by the content where the ending says nothing: no mask of its name vouches for a file here."""
    suffix = suffix_of(name)
    return suffix in SUPPORTED_SUFFIXES or suffix_by_content(name, head_of(name)) in SUPPORTED_SUFFIXES


def _volumes(
    folder: str, entries: list[str], opened: Callable[[str], BinaryIO], issues: list[Issue]
) -> list[ImageEntries]:
    found = _Folder()
    for entry in entries:
        instance = _instance(entry, opened)
        if instance is None or instance.frames > 1:
            found.alone.append(entry)
        elif instance.is_localizer:
            found.scouts.append(entry)
        else:
            found.series[instance.series].append(entry)
    if found.scouts and (found.series or found.alone):
        issues += [findings.SCOUT_LEFT_OUT.issue(entry) for entry in found.scouts]
    elif found.scouts:
        found.alone += found.scouts
    groups = [*found.series.values(), *([entry] for entry in found.alone)]
    if len(groups) > 1 and found.series:
        issues.append(findings.SERIES_APART.issue(_shown(folder), count=len(groups), files=len(entries)))
    images = []
    for group in groups:
        is_series = len(group) > 1
        name = folder if is_series and len(groups) == 1 and folder else group[0]
        images.append(ImageEntries(name, tuple(group), is_series))
    return images


def _instance(entry: str, opened: Callable[[str], BinaryIO]) -> Instance | None:
    try:
        with opened(entry) as file:
            return instance_of(file)
    except ImageError:
        return None


def _shown(folder: str) -> str:
    return f"{folder}/" if folder else "top of the ZIP"
