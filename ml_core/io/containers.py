"""What a ZIP or a folder of files may be: the guards that stand before any byte of it is expanded.

A ZIP is a stranger's: all that its central directory says is checked before the first byte is expanded, and names from
it are only ever keys: no file is written under a name that the ZIP chose. Datasets, batches of images and DICOM series
are read through here.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from ml_core.errors import MLError

CHUNK_BYTES = 1 << 20

# zipfile bounds the memory of these two only: one read of a bzip2 or LZMA entry can expand to gigabytes.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
NESTED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst")
JUNK = re.compile(r"(?i)(?:^|/)(?:\.|(?:__macosx|thumbs\.db|desktop\.ini|@eadir|\$recycle\.bin)(?:/|$))")
SPECIAL_FILES = {stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MAX_NAME_LENGTH = 1_000
MAX_SHOWN_LENGTH = 120  # of a name in a sentence
ZIP_AGAIN = "Make the ZIP again from the plain files and upload that."
COMPRESS = "Store it in a compressed format such as PNG or .nii.gz."
UNPACK = "Unpack it and zip the files."
DEFLATE = "Zip it with the usual method, Deflate."
SPLIT = "Split it into several ZIPs."


class ArchiveError(MLError):
    """An archive that is refused as a whole."""


@dataclass(frozen=True)
class ArchiveLimits:
    """What one ZIP or folder may hold; the defaults are those of a dataset."""

    max_entries: int = 200_000
    """Entries of the directory, folders and junk included."""
    max_expanded_bytes: int = 200 * 2**30
    """Of all files together."""
    max_file_bytes: int = 8 * 2**30
    """Of one file, expanded."""
    max_ratio: float = 200.0
    """Expanded size over compressed size, of one file and of all together."""
    ratio_free_file_bytes: int = 10_000_000
    """A file that expands to no more may have any ratio: that is harmless, and common, for an empty mask is all zeros."""
    ratio_free_total_bytes: int = 10_000_000
    """The same of all files together."""


def is_junk(name: str) -> bool:
    """Whether a file is what operating systems leave in folders: hidden ones, __MACOSX, Thumbs.db and the like."""
    return bool(JUNK.search(name))


def is_archive(name: str) -> bool:
    """By the name's ending: whether there are more files in it."""
    lower = name.lower()
    return lower.endswith(NESTED) and not lower.endswith(".nii.gz")


def list_folder(path: Path, limits: ArchiveLimits) -> dict[str, Path]:
    """The files below a folder by name ("/" between folders), in order; links are not followed, junk is left out.

    Raises ArchiveError (too_many_files, too_large) as soon as there is too much of them.
    """
    files: dict[str, Path] = {}
    total = 0
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_symlink() or not file.is_file() or is_junk(name):
            continue
        files[name] = file
        total += file.stat().st_size
        if len(files) > limits.max_entries:
            raise ArchiveError("too_many_files", f"The folder holds more than {limits.max_entries} files.", SPLIT)
        if total > limits.max_expanded_bytes:
            reason = f"The folder holds more than {limits.max_expanded_bytes / 2**30:.1f} GiB."
            raise ArchiveError("too_large", reason, SPLIT)
    return dict(sorted(files.items()))


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

    def open(self, name: str) -> IO[bytes]:
        """The bytes of member `name`, expanded as they are read: never more than `sizes` says."""
        return self._zip.open(self._members[name])

    def extract(self, name: str, target: Path) -> None:
        """Write member `name` to `target`, whose folder exists. Its CRC-32 is checked.

        Raises ArchiveError naming the member when it is damaged, and OSError when the disk is full, which is nobody's mistake and
        passes; nothing is left behind then. zipfile never yields more than the declared size, and that was held to the limits on opening.
        """
        part = target.with_name(target.name + ".part")
        try:
            with self.open(name) as source, part.open("wb") as sink:
                while chunk := source.read(CHUNK_BYTES):
                    sink.write(chunk)
                if sink.tell() != self.sizes[name]:
                    raise EOFError
            part.replace(target)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
            reason = f"{shown_name(name)} is damaged inside the ZIP."
            raise ArchiveError("damaged_file", reason, ZIP_AGAIN) from error
        finally:
            part.unlink(missing_ok=True)

    def _check_members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        most, ratio, free = self.limits.max_file_bytes, self.limits.max_ratio, self.limits.ratio_free_file_bytes
        for info in self._zip.infolist():
            name, mode = _decoded(info), stat.S_IFMT(info.external_attr >> 16)
            parts = name.split("/")
            absolute = name.startswith("/") or re.match(r"[A-Za-z]:", name)
            clean = "/".join(part for part in parts if part not in ("", "."))
            unusable = CONTROL.search(name) or len(name) > MAX_NAME_LENGTH
            rules = [
                (unusable, "unsafe_name", "is not a usable file name", ZIP_AGAIN),
                (absolute or ".." in parts, "unsafe_path", "points outside the ZIP", ZIP_AGAIN),
                (mode in SPECIAL_FILES, "link", "is a link, not a file", "Put the file itself into the ZIP."),
                # Encrypted, strongly encrypted, or with hidden local headers.
                (info.flag_bits & 0x2041, "encrypted", "is encrypted", "Make the ZIP without a password."),
            ]
            wanted = clean and not name.endswith("/") and not is_junk(clean)
            if wanted:
                method, too_big = info.compress_type, f"has more than {most / 2**30:.1f} GiB"
                too_dense = info.file_size > max(free, ratio * info.compress_size)
                rules += [
                    (clean in members, "duplicate_name", "is in the ZIP twice", ZIP_AGAIN),
                    (is_archive(name), "nested_archive", "is an archive inside the ZIP", UNPACK),
                    (method not in METHODS, "compression_method", f"is packed with method {method}", DEFLATE),
                    (info.file_size > most, "file_too_large", too_big, "Leave it out, or split it."),
                    (too_dense, "ratio", f"expands to more than {ratio:g} times its size", COMPRESS),
                ]
            for bad, code, what, cure in rules:
                if bad:
                    raise ArchiveError(code, f"{shown_name(name)} {what}.", cure)
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
        if total > max(self.limits.ratio_free_total_bytes, self.limits.max_ratio * self.path.stat().st_size):
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


def shown_name(name: str) -> str:
    """A name out of a container as a sentence may show it."""
    name = CONTROL.sub("?", name)
    return name if len(name) <= MAX_SHOWN_LENGTH else name[: MAX_SHOWN_LENGTH - 3] + "..."
