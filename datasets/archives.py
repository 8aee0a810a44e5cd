"""Safe reading of an uploaded ZIP, and pairing of the images with the masks in it.

The ZIP is a stranger's: all that its central directory says is checked before the first byte is expanded, and
names from it are only ever keys: no file is written under a name that the ZIP chose.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ml_core.dataset.pairing import SILENT, WANTED, Folders, natural, pair_folders
from ml_core.dataset.pairing import Issue as Issue
from ml_core.dataset.pairing import Pair as Pair
from ml_core.dataset.pairing import Pairing as Pairing
from ml_core.errors import MLError

CHUNK_BYTES = 1 << 20
RATIO_FREE_BYTES = 10_000_000  # below this a high ratio is harmless, and common: an empty mask is all zeros

# zipfile bounds the memory of these two only: one read of a bzip2 or LZMA entry can expand to gigabytes.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
NESTED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst")
JUNK = re.compile(r"(?i)(?:^|/)(?:\.|(?:__macosx|thumbs\.db|desktop\.ini|@eadir|\$recycle\.bin)(?:/|$))")
SPECIAL_FILES = {stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ZIP_AGAIN = "Make the ZIP again from the plain files and upload that."
COMPRESS = "Store it in a compressed format such as PNG or .nii.gz."
UNPACK = "Unpack it and zip the files."
DEFLATE = "Zip it with the usual method, Deflate."
SPLIT = "Split it into several datasets."


class ArchiveError(MLError):
    """An archive that is refused as a whole."""


@dataclass(frozen=True)
class ArchiveLimits:
    """What one upload may hold. Sizes in bytes; `max_ratio` is expanded size over compressed size."""

    max_entries: int = 200_000
    max_expanded_bytes: int = 200 * 2**30
    max_file_bytes: int = 8 * 2**30
    max_ratio: float = 200.0


class SafeArchive:
    """A ZIP whose directory was checked; use it as a context manager.

    `sizes` maps the usable members (no folders, no junk; "/" between folders, NFC) to their expanded bytes.
    Raises ArchiveError on entering when the archive as a whole cannot be accepted.
    """

    def __init__(self, path: Path, limits: ArchiveLimits | None = None) -> None:
        self.path = path
        self.limits = limits or ArchiveLimits()

    def __enter__(self) -> Self:
        try:
            _check_directory(self.path, self.limits)
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            with self.path.open("rb") as file:
                if file.read(2) == b"PK":
                    raise ArchiveError("damaged_zip", "The ZIP is damaged or cut off.", ZIP_AGAIN) from error
            raise ArchiveError("not_a_zip", "The file is not a ZIP.", ZIP_AGAIN) from error
        try:
            self._members = self._check_members()
        except BaseException:
            self._zip.close()
            raise
        self.sizes = {name: info.file_size for name, info in self._members.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def extract(self, name: str, target: Path) -> None:
        """Write member `name` to `target`, whose folder exists. Its CRC-32 is checked.

        Raises ArchiveError naming the member when it is damaged, and OSError when the disk is full, which is nobody's mistake and
        passes; nothing is left behind then. zipfile never yields more than the declared size, and that was held to the limits on opening.
        """
        info = self._members[name]
        part = target.with_name(target.name + ".part")
        try:
            with self._zip.open(info) as source, part.open("wb") as sink:
                while chunk := source.read(CHUNK_BYTES):
                    sink.write(chunk)
                if sink.tell() != info.file_size:
                    raise EOFError
            part.replace(target)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
            reason = f"{_shown(name)} is damaged inside the ZIP."
            raise ArchiveError("damaged_file", reason, ZIP_AGAIN) from error
        finally:
            part.unlink(missing_ok=True)

    def _check_members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        most, ratio = self.limits.max_file_bytes, self.limits.max_ratio
        for info in self._zip.infolist():
            name, mode = _decoded(info), stat.S_IFMT(info.external_attr >> 16)
            parts = name.split("/")
            nested = name.lower().endswith(NESTED) and not name.lower().endswith(".nii.gz")
            absolute = name.startswith("/") or re.match(r"[A-Za-z]:", name)
            clean = "/".join(part for part in parts if part not in ("", "."))
            unusable = CONTROL.search(name) or len(name) > 1000
            rules = [
                (unusable, "unsafe_name", "is not a usable file name", ZIP_AGAIN),
                (absolute or ".." in parts, "unsafe_path", "points outside the ZIP", ZIP_AGAIN),
                (mode in SPECIAL_FILES, "link", "is a link, not a file", "Put the file itself into the ZIP."),
                # Encrypted, strongly encrypted, or with hidden local headers.
                (info.flag_bits & 0x2041, "encrypted", "is encrypted", "Make the ZIP without a password."),
            ]
            wanted = clean and not name.endswith("/") and not JUNK.search(clean)
            if wanted:
                method, too_big = info.compress_type, f"has more than {most / 2**30:.1f} GiB"
                too_dense = info.file_size > max(RATIO_FREE_BYTES, ratio * info.compress_size)
                rules += [
                    (clean in members, "duplicate_name", "is in the ZIP twice", ZIP_AGAIN),
                    (nested, "nested_archive", "is an archive inside the ZIP", UNPACK),
                    (method not in METHODS, "compression_method", f"is packed with method {method}", DEFLATE),
                    (info.file_size > most, "file_too_large", too_big, "Leave it out, or split it."),
                    (too_dense, "ratio", f"expands to more than {ratio:g} times its size", COMPRESS),
                ]
            for bad, code, what, cure in rules:
                if bad:
                    raise ArchiveError(code, f"{_shown(name)} {what}.", cure)
            if wanted:
                members[clean] = info
        if not members:
            raise ArchiveError("no_files", "The ZIP holds no files.", "Add images and masks, and zip again.")
        self._check_whole(sum(info.file_size for info in members.values()))
        return members

    def _check_whole(self, total: int) -> None:
        # Entries that share bytes are how a few megabytes pretend to be petabytes.
        spans = sorted(
            (info.header_offset, info.header_offset + 30 + len(info.orig_filename) + info.compress_size)
            for info in self._zip.infolist()
        )
        begins = [begin for begin, _ in spans] + [self._zip.start_dir]
        if begins[0] < 0 or any(end > after for (_, end), after in zip(spans, begins[1:], strict=True)):
            raise ArchiveError("overlap", "Files inside the ZIP overlap: it is damaged or a trap.", ZIP_AGAIN)
        if total > self.limits.max_expanded_bytes:
            reason = f"The ZIP expands to more than {self.limits.max_expanded_bytes / 2**30:.1f} GiB."
            raise ArchiveError("too_large", reason, SPLIT)
        if total > max(RATIO_FREE_BYTES, self.limits.max_ratio * self.path.stat().st_size):
            reason = f"The ZIP expands to more than {self.limits.max_ratio:g} times its size."
            raise ArchiveError("ratio", reason, COMPRESS)


def _check_directory(path: Path, limits: ArchiveLimits) -> None:
    """Count the entries before zipfile makes an object of each: a huge directory must not fill the memory."""
    too_many = ArchiveError("too_many_files", f"The ZIP holds more than {limits.max_entries} files.", SPLIT)
    with path.open("rb") as file:
        # Private, but the same in every Python 3: the guard has to see the very record that zipfile will use.
        record: list[Any] | None = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # private: see above
        if record is None or record[5] > record[9]:
            raise zipfile.BadZipFile
        size, location = record[5], record[9] - (76 if record[0] == b"PK\x06\x06" else 0)
        if size > limits.max_entries * 512:
            raise too_many
        file.seek(max(0, location - size))
        directory = file.read(size)
    at = count = 0
    while at < size:
        at += 46 + sum(struct.unpack_from("<3H", directory, at + 28))  # name, extra field, comment
        count += 1
        if count > limits.max_entries:
            raise too_many


def _decoded(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename
    if not info.flag_bits & 0x800 and not name.isascii():
        try:  # macOS writes UTF-8 without saying so; zipfile then took it for cp437
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.orig_filename
    return unicodedata.normalize("NFC", name).replace("\\", "/")


def _shown(name: str) -> str:
    name = CONTROL.sub("?", name)
    return name if len(name) <= 120 else name[:117] + "..."


FOLDER = re.compile(
    r"(?P<image>images?|imgs?|imagestr)|masks?|labels?|labelstr|annotations?|segmentations?|groundtruth|gt"
)


def find_pairs(names: Iterable[str]) -> Pairing:
    """Find the image and mask folders among archive `names` and pair their files by name.

    Accepts many folder names in any case below 0-2 wrapper folders, mirrored subfolders, and one subfolder
    per DICOM series below images/ with one mask file of its name. Raises ArchiveError without such folders.
    """
    return pair_folders(*_find_folders(list(names)))


def _find_folders(names: list[str]) -> tuple[Folders, Folders, list[Issue]]:
    """Sort names into image and mask folders; what lies elsewhere becomes one warning per folder."""
    # The outermost fitting folder counts, else the innermost: images.zip may wrap its images/ in images/.
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
            detail = "{} files outside the image and mask folders were not read. " + WANTED
            issues = [Issue("warning", "ignored_folder", at, detail.format(n)) for at, n in ignored.items()]
            return images, masks, issues
    found = sorted({"/".join(name.split("/")[:-1][:3]) for name in names} - {""}, key=natural)
    listed = ", ".join(_shown(folder) + "/" for folder in found[:8]) or "no folders"
    reason = f"The ZIP needs a folder of images beside a folder of masks. Found: {listed}."
    raise ArchiveError("no_folders", reason, WANTED)
