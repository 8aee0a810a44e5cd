"""Which files of a DICOM folder make one volume: scouts are left out, and several volumes are told apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom.dataset import Dataset

from ml_core.errors import ImageError
from ml_core.io import dicom
from ml_core.io.containers import shown_name
from ml_core.io.geometry import Plane, same_numbers
from ml_core.io.image import Notice

ONE_VOLUME = "Give only the files of one volume."
# Files of another size or direction are taken for scouts if there are this many times more of the others.
MANY_MORE = 8
# Messages list so many files, and so many groups of files.
MAX_LISTED = 5
# So many kinds of files are told apart, because every file is compared with all of them.
MAX_KINDS = 20
# What tells the volumes of one series apart that lie at the same positions, with the words for it.
TELLING: tuple[tuple[str | tuple[int, int], str], ...] = (
    ("EchoTime", "echo time"),
    ("EchoNumbers", "echo number"),
    ("DiffusionBValue", "b-value"),
    # Where Siemens and GE keep the b-value.
    ((0x0019, 0x100C), "b-value"),
    ((0x0043, 0x1039), "b-value"),
    ("TemporalPositionIdentifier", "time point"),
    ("InversionTime", "inversion time"),
    ("FlipAngle", "flip angle"),
    ("ImageType", "image type"),
    ("SequenceName", "sequence name"),
    ("TriggerTime", "trigger time"),
    ("AcquisitionNumber", "acquisition number"),
    ("AcquisitionTime", "acquisition time"),
    ("ContentTime", "content time"),
)


@dataclass(frozen=True, eq=False)
class Part:
    """One file of a series."""

    name: str
    """The user's name of the file, for messages."""
    opened: Callable[[], BinaryIO]
    header: Dataset
    """Without pixels."""
    plane: Plane
    """The plane of its first frame."""

    @classmethod
    def of(cls, name: str, opened: Callable[[], BinaryIO], header: Dataset) -> Part:
        return cls(name, opened, header, dicom.single_plane(header))

    @property
    def frames(self) -> int:
        return dicom.frame_count(self.header)


def choose_volume(parts: Sequence[Part]) -> tuple[list[Part], list[Notice]]:
    """Return the files that make one volume, in their order, and what was left out.

    Localizers are left out, and so are a few files of another size or direction among many alike. Raises ImageError
    several_series, several_volumes, mixed_series, mixed_shape, mixed_orientation, mixed_spacing or no_position if what
    remains is more than one volume.
    """
    kept, notices = list(parts), list[Notice]()
    scouts = [part for part in kept if is_localizer(part.header)]
    # Localizers that outnumber the rest may be what the user means.
    if scouts and len(scouts) <= len(kept) - len(scouts):
        kept = [part for part in kept if part not in scouts]
        notices.append(Notice("localizer", f"{_left_out(scouts)} (ImageType says localizer)."))
    groups = sorted(_alike(kept), key=len, reverse=True)
    odd = [part for group in groups[1:] for part in group]
    if odd and len(groups) < MAX_KINDS and len(groups[0]) >= MANY_MORE * len(odd):
        what = _difference(groups[0][0], odd[0])[1]
        notices.append(Notice("odd_slices", f"{_left_out(odd)}: {what} differs from the other {len(groups[0])} files."))
        kept, groups = groups[0], groups[:1]
    _check_one_series(kept)
    if len(groups) > 1:
        code, what = _difference(groups[0][0], groups[1][0])
        sizes = [f"{group[0].header.Rows} x {group[0].header.Columns}" for group in groups] if what == "size" else []
        listed = _listed(groups, sizes)
        kinds = f"{len(groups)}{' or more' if len(groups) == MAX_KINDS else ''}"
        reason = f"The series holds files of {kinds} kinds, which differ in their {what}: {listed}."
        raise ImageError(code, reason, ONE_VOLUME)
    if len(kept) > 1 and kept[0].frames > 1:
        reason = f"The series has {len(kept)} files and {kept[0].name} alone is a volume."
        raise ImageError("mixed_series", reason, "Give each multi-frame file on its own.")
    _check_one_volume(kept)
    return kept, notices


def is_mostly_dicom(dicom_files: int, others: int) -> bool:
    """Whether a folder with files that are not DICOM is a series all the same, of which they are left out."""
    return dicom_files > 1 and others < dicom_files


def names_of(names: Sequence[str]) -> str:
    """Name files in a message: all of a few, else the first ones and how many there are besides."""
    shown = [shown_name(name) for name in names[:MAX_LISTED]]
    if len(names) > len(shown):
        return f"{', '.join(shown)} and {len(names) - len(shown)} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def left_out(names: Sequence[str]) -> str:
    """The beginning of a sentence about files that are left out."""
    return f"{names_of(names)} {'was' if len(names) == 1 else 'were'} left out"


def _left_out(parts: Sequence[Part]) -> str:
    return left_out([part.name for part in parts])


def is_localizer(header: Dataset) -> bool:
    """Whether ImageType calls an image a localizer (scout)."""
    kinds = header.get("ImageType") or ()
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return any("LOCALIZER" in str(kind).upper() or str(kind).upper() == "SCOUT" for kind in kinds)


def _alike(parts: Iterable[Part]) -> list[list[Part]]:
    """Group files by all that the slices of a volume share. The last of MAX_KINDS groups takes what fits into no other."""
    groups: list[list[Part]] = []
    for part in parts:
        group = next((group for group in groups if not _difference(group[0], part)[0]), None)
        if group is not None:
            group.append(part)
        elif len(groups) < MAX_KINDS:
            groups.append([part])
        else:
            groups[-1].append(part)
    return groups


def _difference(one: Part, other: Part) -> tuple[str, str]:
    """The code and the name of the first thing in which two files differ that should be alike; ("", "") if nothing."""
    a, b = one.header, other.header
    if (one.frames > 1) != (other.frames > 1):
        return "mixed_series", "number of frames"
    if (a.Rows, a.Columns) != (b.Rows, b.Columns):
        return "mixed_shape", "size"
    if a.get("SamplesPerPixel") != b.get("SamplesPerPixel"):
        return "mixed_shape", "number of channels"
    if not same_numbers(one.plane.orientation, other.plane.orientation):
        return "mixed_orientation", "orientation"
    if not same_numbers(one.plane.spacing, other.plane.spacing):
        return "mixed_spacing", "pixel spacing"
    if (one.plane.position is None) != (other.plane.position is None):
        return "no_position", "position (some have no ImagePositionPatient)"
    return "", ""


def _check_one_series(parts: Sequence[Part]) -> None:
    series = _grouped(parts, lambda part: str(part.header.get("SeriesInstanceUID") or ""))
    if len(series) > 1:
        raise ImageError(
            "several_series",
            f"There are {len(series)} DICOM series in it: {_listed(series)}.",
            "Put each series into a ZIP or folder of its own.",
        )


def _check_one_volume(parts: Sequence[Part]) -> None:
    """Refuse a series of several volumes at the same positions, and say by what they differ."""
    places = _grouped(parts, _place)
    if len(places) == len(parts) or any(part.plane.position is None for part in parts):
        return
    for tag, words in TELLING:
        volumes = _grouped(parts, lambda part, tag=tag: str(_value(part.header, tag)))  # type: ignore[misc]
        if len(volumes) == len(places[0]) and all(len(_grouped(group, _place)) == len(group) for group in volumes):
            values = [_value(volume[0].header, tag) for volume in volumes]
            raise ImageError(
                "several_volumes",
                f"The series holds {len(volumes)} volumes at the same positions, which differ in their {words}: "
                f"{_listed(volumes, values)}.",
                "Give one volume at a time: put the files of each into a ZIP or folder of its own.",
            )


def _place(part: Part) -> tuple[float, ...]:
    return tuple(round(number, 2) + 0.0 for number in part.plane.position or ())


def _value(header: Dataset, tag: str | tuple[int, int]) -> Any:
    if isinstance(tag, str):
        return header.get(tag)
    return header[tag].value if tag in header else None


def _grouped(parts: Iterable[Part], key: Callable[[Part], Hashable]) -> list[list[Part]]:
    """Group files by a key, the largest group first."""
    groups: dict[Hashable, list[Part]] = {}
    for part in parts:
        groups.setdefault(key(part), []).append(part)
    return sorted(groups.values(), key=len, reverse=True)


def _listed(groups: Sequence[Sequence[Part]], values: Sequence[Any] = ()) -> str:
    """Say of each group how many files it has, one of their names and, where it is given, its value."""
    texts = []
    for index, group in enumerate(groups[:MAX_LISTED]):
        many = "files such as " if len(group) > 1 else "file, "
        value = f" ({shown_name(str(values[index]))[:40]})" if values else ""
        texts.append(f"{len(group)} {many}{shown_name(group[0].name)}{value}")
    return "; ".join(texts) + ("; and more" if len(groups) > MAX_LISTED else "")
