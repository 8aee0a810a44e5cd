"""Pair images with masks by their names, for archives, folders and nnU-Net's raw layout."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ml_core.dataset import findings
from ml_core.dataset.findings import DatasetRefusedError, Issue
from ml_core.errors import count_of
from ml_core.io.containers import shown_name
from ml_core.io.content import is_bare_dicom, kind_of
from ml_core.io.formats import SUPPORTED_SUFFIXES, stem, suffixes_of
from ml_core.io.parts import is_mostly_dicom

SPLIT_FOLDER = re.compile(r"train|training|val|valid|validation|test|testing")
DICOM_SUFFIXES = {"", *suffixes_of("dicom")}
PLAIN_SUFFIXES = suffixes_of("raster", "nifti")
SILENT = re.compile(
    r"(?i).*\.(json|txt|csv|tsv|md|rst|pdf|xml|ya?ml|toml|html?|xlsx?|docx?|log|py|ipynb|ini)"
    r"|dicomdir|readme|licen[cs]e|version|changes|lockfile|md5sums|checksums"
)
FOLDER = re.compile(
    r"(?P<image>images?|imgs?|imagestr)|masks?|labels?|labelstr|annotations?|segmentations?|groundtruth|gt"
)
MASK_WORDS = re.compile(r"(?i)(?<=.)(?:[_-](?:masks?|seg(?:mentation)?|labels?|gt|groundtruth))+$")
MASK_WORDS_AND_CHANNEL = re.compile(MASK_WORDS.pattern.replace("gt|", "gt|0000|"))
OTHER_SUFFIX = re.compile(r"(?i)(?<=.)\.[a-z][a-z0-9]{0,4}$")
NUMBER = re.compile(r"(?<=.)[_-]?[0-9]{1,3}$")
# Endings of files in which programs save outlines.
OUTLINES = {
    ".json": "JSON, as COCO and LabelMe write it",
    ".txt": "text, as YOLO writes it",
    ".xml": "XML, as CVAT writes it",
}
LATER_CHANNEL = re.compile(r"(?<=.)[_-]0\d\d\d$")
_bare = partial(MASK_WORDS_AND_CHANNEL.sub, "")

# The folders around images/ or masks/ as written, and the folders below it in lower case.
Key = tuple[tuple[str, ...], tuple[str, ...]]
# The files of each folder, by their whole names.
Folders = defaultdict[Key, list[str]]
# Gives the first HEAD_BYTES bytes (ml_core.io.content) of an entry, or fewer if the entry is shorter or damaged.
HeadOf = Callable[[str], bytes]


@dataclass(frozen=True)
class Pair:
    """One image with its mask. File names are whole, with "/" between folders."""

    name: str
    """A name that no other pair has."""
    image: tuple[str, ...]
    """The image file, or the files of a DICOM series in natural order."""
    mask: str
    """The mask file, or the folder of a series of masks."""
    is_series: bool
    """The image is a folder with a DICOM series."""


@dataclass(frozen=True)
class Pairing:
    """The result of pairing."""

    pairs: list[Pair]
    """In natural order of their names."""
    issues: list[Issue]
    """Errors first, then warnings."""


@dataclass(frozen=True, eq=False, slots=True)
class _Item:
    """One image or one mask: a file, or a folder with a DICOM series."""

    stem: str
    """The name without folders and ending."""
    shown: str
    """The name in messages: the whole name of the file, or of the folder of a series."""
    entries: tuple[str, ...]
    """The file alone, or all files of a series."""


@dataclass(slots=True)
class _Group:
    """Images and masks that may be paired: those of one folder below images/, and of the same folder below masks/."""

    images: list[_Item] = field(default_factory=list)
    masks: list[_Item] = field(default_factory=list)

    def by_name(self, strip: Callable[[str], str]) -> defaultdict[str, _Group]:
        """Divide the group by the names that `strip` leaves, ignoring case."""
        groups: defaultdict[str, _Group] = defaultdict(_Group)
        for image in self.images:
            groups[strip(image.stem).casefold()].images.append(image)
        for mask in self.masks:
            groups[strip(mask.stem).casefold()].masks.append(mask)
        return groups


def no_head(name: str) -> bytes:
    """The head of an entry whose content cannot be looked at; its name alone decides."""
    return b""


def find_pairs(names: Iterable[str], head_of: HeadOf = no_head) -> Pairing:
    """Find the folders of images and of masks among the `names` in an archive, and pair their files by name.

    The folders may have many names (such as images or imagesTr), in upper or lower case, and up to two folders around
    them. Subfolders of images/ are paired with the same subfolders of masks/. A subfolder of images/ with a DICOM
    series is one image, whose mask is a file of the same name. The content tells what a file is whose ending does not,
    and which folders hold a DICOM series. Raises DatasetRefusedError if there are no such folders.
    """
    return pair_folders(*_find_folders(list(names)), head_of=head_of)


def _find_folders(names: list[str]) -> tuple[Folders, Folders, list[Issue]]:
    """Sort names into folders of images and folders of masks. Each other folder with files becomes one warning."""
    # The outermost folder with a fitting name is tried first, then the innermost, because an archive images.zip may
    # wrap its images/ and masks/ in a folder images/.
    for which in (0, -1):
        images, masks, ignored = Folders(list), Folders(list), Counter[str]()
        for name in names:
            parts = name.split("/")
            folders = [part.casefold() for part in parts[:-1]]
            hits = [(at, hit) for at, part in enumerate(folders[:3]) if (hit := FOLDER.fullmatch(part))]
            if SILENT.fullmatch(parts[-1]):
                continue
            if hits:
                depth, hit = hits[which]
                side = images if hit["image"] else masks
                side[tuple(parts[:depth]), tuple(folders[depth + 1 :])].append(name)
            else:
                ignored["/".join(parts[:-1]) or "top of the ZIP"] += 1
        if {wrapper for wrapper, _ in images} & {wrapper for wrapper, _ in masks}:
            counts = {folder: count_of(count, "file") for folder, count in ignored.items()}
            return images, masks, [findings.IGNORED_FOLDER.issue(at, count=count) for at, count in counts.items()]
    if refusal := _outlines(names):
        raise refusal
    present = sorted({"/".join(name.split("/")[:-1][:3]) for name in names} - {""}, key=natural)
    listed = ", ".join(shown_name(folder) + "/" for folder in present[:8]) or "no folders"
    raise findings.NO_FOLDERS.refusal(found=listed)


def pair_folders(
    images: Folders,
    masks: Folders,
    issues: list[Issue],
    *,
    mask_folders: bool = False,
    head_of: HeadOf = no_head,
) -> Pairing:
    """Pair the files of image folders and mask folders by name. `issues` are those found before.

    A subfolder of DICOM files is one series, whose mask is a file with the folder's name. With `mask_folders` the mask
    may also be a folder of that name; `Pair.mask` is then the folder.
    """
    groups: dict[Key, _Group] = defaultdict(_Group)
    for key, entries in images.items():
        wrapper, folder = key
        is_series = folder and (all_dicom(entries, head_of) if key in masks else holds_series(entries, head_of))
        if not is_series or (key in masks and SPLIT_FOLDER.fullmatch(folder[-1])):
            groups[key].images.extend(_items(entries, issues, head_of))
        elif mask_folders and key in masks and all_dicom(masks[key], head_of):
            groups[wrapper, folder[:-1]].images.append(_series(entries))
            groups[wrapper, folder[:-1]].masks.append(_series(masks.pop(key)))
        elif masks.pop(key, None):
            series = _series(entries)
            issues.append(findings.MASK_IS_FOLDER.issue(series.shown, series=series.stem))
        else:
            groups[wrapper, folder[:-1]].images.append(_series(entries))
    for key, entries in masks.items():
        groups[key].masks.extend(_items(entries, issues, head_of))
    several = len({wrapper for (wrapper, _), group in groups.items() if group.images and group.masks}) > 1
    pairs: dict[str, Pair] = {}
    for (wrapper, folder), group in groups.items():
        for image, mask, short in _match(group, issues):
            above = image.shown.split("/")[len(wrapper) + 1 :][: len(folder)]
            name = "/".join([*(wrapper if several else ()), *above, short])
            name = image.shown if name in pairs else name
            pairs[name] = Pair(name, image.entries, mask.shown, image.entries != (image.shown,))
    issues.sort(key=lambda issue: (issue.severity, natural(issue.file)))
    return Pairing(sorted(pairs.values(), key=lambda pair: natural(pair.name)), issues)


def all_dicom(entries: list[str], head_of: HeadOf = no_head) -> bool:
    """Whether all files are DICOM. A folder of pictures is known by its first file."""
    return all(is_dicom_entry(entry, head_of) for entry in entries)


def holds_series(entries: list[str], head_of: HeadOf = no_head) -> bool:
    """Whether a folder holds a DICOM series: all of its files are DICOM, or most of them, as a preview may lie there.

    The reader of a series leaves the others out by the same rule.
    """
    count = len(dicom_of(entries, head_of))
    return count == len(entries) or is_mostly_dicom(count, len(entries) - count)


def dicom_of(entries: list[str], head_of: HeadOf) -> list[str]:
    """The DICOM files of one folder.

    Of files with the ending of another format only the first one is looked at, because to look at each takes time.
    """
    found: list[str] = []
    misnamed: dict[str, bool] = {}
    for entry in entries:
        suffix = _split(entry)[1]
        if suffix in PLAIN_SUFFIXES and suffix not in misnamed:
            misnamed[suffix] = is_dicom_entry(entry, head_of)
        if misnamed.get(suffix, True) and is_dicom_entry(entry, head_of):
            found.append(entry)
    return found


def is_dicom_entry(entry: str, head_of: HeadOf) -> bool:
    """Whether a file is DICOM: by an ending of DICOM, else by its content. Names without ending decide if it says nothing."""
    suffix = _split(entry)[1]
    if suffix and suffix in DICOM_SUFFIXES:
        return True
    head = head_of(entry)
    kind = kind_of(head)
    if kind is not None:
        return kind == "dicom"
    return suffix in DICOM_SUFFIXES or (suffix not in SUPPORTED_SUFFIXES and is_bare_dicom(head))


def _series(entries: list[str]) -> _Item:
    """Make one item of all files in a folder, with the folder's name."""
    shown = entries[0].rpartition("/")[0]
    return _Item(shown.rpartition("/")[2], shown, tuple(sorted(entries, key=natural)))


def _items(entries: list[str], issues: list[Issue], head_of: HeadOf) -> Iterator[_Item]:
    """Make one item of each file. A file of an unsupported format becomes an issue instead."""
    for entry in entries:
        base, suffix = _split(entry)
        if suffix in SUPPORTED_SUFFIXES or suffix in DICOM_SUFFIXES or _is_image(head_of(entry)):
            yield _Item(base, entry, (entry,))
        else:
            issues.append(findings.UNSUPPORTED_FORMAT.issue(entry, suffix=suffix))


def _is_image(head: bytes) -> bool:
    return kind_of(head) in ("raster", "nifti", "dicom") or is_bare_dicom(head)


def _match(group: _Group, issues: list[Issue]) -> Iterator[tuple[_Item, _Item, str]]:
    """Pair by name: first by the exact name, then without words such as _mask, then also without the channel _0000.

    Yields (image, mask, name). The order of the three matters: video frames (frame_0000, frame_0001) have masks of
    exactly their names, so they are not mistaken for nnU-Net's channels (case_0000, case_0001). What cannot be paired
    becomes an issue.
    """
    if not group.images or not group.masks:
        lacking = findings.NO_MASKS_FOLDER if group.images else findings.NO_IMAGES_FOLDER
        issues.extend(lacking.issue(item.shown.rpartition("/")[0] + "/") for item in (group.images or group.masks)[:1])
        return
    unpaired, pairs = group, list[tuple[_Item, _Item, str]]()
    for strip in (str, partial(MASK_WORDS.sub, ""), _bare):
        matched = [g for g in unpaired.by_name(strip).values() if len(g.images) == len(g.masks) == 1]
        pairs += [(g.images[0], g.masks[0], strip(g.images[0].stem)) for g in matched]
        used = {item for g in matched for item in g.images + g.masks}
        unpaired = _Group([i for i in unpaired.images if i not in used], [m for m in unpaired.masks if m not in used])
    further = _further_masks(unpaired.masks)
    for image, mask, name in pairs:
        if several := further.get(_bare(image.stem).casefold()):
            files = [mask.shown, *(other.shown for other in several)]
            issues.append(findings.SEVERAL_MASKS.issue(image.shown, files=", ".join(files[:5]), count=len(files)))
            unpaired.masks = [item for item in unpaired.masks if item not in several]
        else:
            yield image, mask, name
    # The names are needed only to explain unpaired files, so nothing is done if there are none.
    names = (group if unpaired.images or unpaired.masks else unpaired).by_name(_bare)
    for is_image, items in ((True, unpaired.images), (False, unpaired.masks)):
        for item in items:
            same = names[_bare(item.stem).casefold()]
            own_side, other_side = (same.images, same.masks) if is_image else (same.masks, same.images)
            twin = next((each for each in own_side if each is not item), None)
            case = LATER_CHANNEL.sub("", item.stem)
            if twin:
                finding = findings.IMAGE_NAMED_TWICE if is_image else findings.MASK_NAMED_TWICE
            elif is_image and case != item.stem and names[_bare(case).casefold()].masks:
                finding = findings.EXTRA_CHANNEL
            elif other_side:
                # Several files of the other side have this name. The issue about them says enough.
                continue
            else:
                finding = findings.NO_MASK if is_image else findings.NO_IMAGE
            facts = {"name": _bare(item.stem), "case": case, "twin": twin and twin.shown}
            issues.append(finding.issue(item.shown, **facts))


def _further_masks(masks: list[_Item]) -> dict[str, list[_Item]]:
    """Masks such as case_mask_1 by the name of their image, case."""
    found: dict[str, list[_Item]] = {}
    for mask in masks:
        if (short := NUMBER.sub("", mask.stem)) != mask.stem and _bare(short) != short:
            found.setdefault(_bare(short).casefold(), []).append(mask)
    return found


def _outlines(names: list[str]) -> DatasetRefusedError | None:
    """The refusal of a ZIP whose annotations are outlines in text files, and not pictures of masks."""
    for name in names:
        folders, _, base = name.rpartition("/")
        suffix = _split(base)[1]
        is_named = (
            any(FOLDER.fullmatch(part.casefold()) for part in folders.split("/")) or "annotations" in base.lower()
        )
        if suffix in OUTLINES and is_named:
            return findings.OUTLINES.refusal(kind=OUTLINES[suffix], example=shown_name(name))
    return None


def _split(name: str) -> tuple[str, str]:
    """Split a name into stem and ending: "a/b.nii.gz" gives ("b", ".nii.gz").

    A number is never an ending, because DICOM files are often named by a UID.
    """
    base = name.rpartition("/")[2]
    short = stem(base)
    if short == base and (other := OTHER_SUFFIX.search(base)):
        short = base[: other.start()]
    return short, base[len(short) :].lower()


def natural(name: str) -> list[Any]:
    """Return a key that sorts names in natural order, with 2 before 10."""
    # Numbers are compared as text, shorter ones first, because int() refuses very long ones.
    parts: list[Any] = re.split(r"([0-9]+)", name.casefold())
    parts[1::2] = [(len(number), number) for number in (text.lstrip("0") for text in parts[1::2])]
    return [*parts, name]
