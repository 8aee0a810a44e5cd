"""Check a ZIP or a folder of files before anything in it is read.

A ZIP comes from a stranger. Everything its central directory says is checked before the first byte is expanded. The
names in it serve only as keys: no file is ever written under a name that the ZIP chose. Datasets, batches of images
and DICOM series are all read through this module.
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
from typing import IO, Any, BinaryIO, Self, cast

from ml_core.errors import MLError
from ml_core.io.content import HEAD_BYTES
from ml_core.io.formats import FORMATS, suffix_of

CHUNK_BYTES = 1 << 20

# Only these two are allowed, because zipfile bounds their memory. One read of a bzip2 or LZMA entry can expand to
# gigabytes.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
NESTED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst")
JUNK = re.compile(r"(?i)(?:^|/)(?:\.|(?:__macosx|thumbs\.db|desktop\.ini|@eadir|\$recycle\.bin)(?:/|$))")
SPECIAL_FILES = {stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MAX_NAME_LENGTH = 1_000
# Characters of a file name that a message shows.
MAX_SHOWN_LENGTH = 120
ZIP_AGAIN = "Make the ZIP again from the plain files and upload that."
COMPRESS = "Store it in a compressed format such as PNG or .nii.gz."
UNPACK = "Unpack it and zip the files."
DEFLATE = "Zip it with the usual method, Deflate."
SPLIT = "Split it into several ZIPs."


class ArchiveError(MLError):
    """An archive that is refused as a whole."""


@dataclass(frozen=True)
class ArchiveLimits:
    """The limits on one ZIP or folder; the defaults are those of a dataset."""

    max_entries: int = 200_000
    """Number of entries, folders and junk included."""
    max_expanded_bytes: int = 200 * 2**30
    """Expanded size of all files together."""
    max_file_bytes: int = 8 * 2**30
    """Expanded size of one file."""
    max_ratio: float = 200.0
    """Expanded size over compressed size, for each file and for all files together, but for those of plain formats."""
    max_plain_ratio: float = 1_100.0
    """The same for each file of a plain format (`Format.is_plain`), such as .nii.

    A mask is sparse by nature, and Deflate shrinks an empty one to 1:1032, which is the most it can. Only the sizes
    bound such files: `max_file_bytes`, `max_expanded_bytes`, and the limits of the readers.
    """
    ratio_free_file_bytes: int = 10_000_000
    """A file whose expanded size is at most this may have any ratio.

    An empty mask is all zeros, so high ratios are common.
    """
    has_zips: bool = False
    """Whether a file may be a ZIP itself. Whoever opens that one checks it against limits of its own."""
    ratio_free_total_bytes: int = 10_000_000
    """Files whose total expanded size is at most this may have any ratio together."""


def is_junk(name: str) -> bool:
    """Whether a file is one that operating systems leave in folders, such as hidden files, __MACOSX or Thumbs.db."""
    return bool(JUNK.search(name))


def is_archive(name: str) -> bool:
    """Whether the ending of the name is that of an archive. A .nii.gz file is an image, not an archive."""
    lower = name.lower()
    return lower.endswith(NESTED) and not lower.endswith(".nii.gz")


def list_folder(path: Path, limits: ArchiveLimits) -> dict[str, Path]:
    """Map the names of all files below a folder ("/" between folders) to their paths, sorted by name.

    Links are not followed, and junk is omitted. Raises ArchiveError too_many_files or too_large at the first file over
    a limit.
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
    """A ZIP whose central directory was checked. Use it as a context manager.

    `sizes` maps each file of the ZIP to its expanded bytes. Folders and junk are omitted; names are Unicode NFC with
    "/" between folders. Entering raises ArchiveError if the archive breaks a limit or holds an unsafe entry.
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
        """Open member `name`. It is expanded while it is read, and never yields more bytes than `sizes` says."""
        return self._zip.open(self._members[name])

    def open_binary(self, name: str) -> BinaryIO:
        """The same as `open`, for readers that ask for a BinaryIO."""
        return cast(BinaryIO, self.open(name))

    def head(self, name: str) -> bytes:
        """Return the first HEAD_BYTES bytes of member `name`; none of a damaged one, which `extract` refuses."""
        try:
            with self.open(name) as member:
                return member.read(HEAD_BYTES)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError):
            return b""

    def extract(self, name: str, target: Path) -> bytes:
        """Write member `name` to `target`, whose folder must exist, check its CRC-32, and return its first HEAD_BYTES.

        Raises ArchiveError damaged_file if the member is damaged, and OSError if the disk is full, since a full disk is
        no fault of the ZIP. No partial file is left behind. The written size is bounded: zipfile never yields more than
        the declared size, and the declared size was checked against the limits on entering.
        """
        head = b""
        try:
            with self.open(name) as source, target.open("wb") as sink:
                while chunk := source.read(CHUNK_BYTES):
                    head = head or chunk[:HEAD_BYTES]
                    sink.write(chunk)
                if sink.tell() != self.sizes[name]:
                    raise EOFError
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | RuntimeError | ValueError):
                reason = f"{shown_name(name)} is damaged inside the ZIP."
                raise ArchiveError("damaged_file", reason, ZIP_AGAIN) from error
            raise
        return head

    def _check_members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        max_bytes, free = self.limits.max_file_bytes, self.limits.ratio_free_file_bytes
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
                # The three flags: encrypted, strongly encrypted, local headers hidden.
                (info.flag_bits & 0x2041, "encrypted", "is encrypted", "Make the ZIP without a password."),
            ]
            is_file = clean and not name.endswith("/") and not is_junk(clean)
            if is_file:
                method, too_big = info.compress_type, f"has more than {max_bytes / 2**30:.1f} GiB"
                ratio = self.limits.max_plain_ratio if _is_plain(clean) else self.limits.max_ratio
                is_nested = is_archive(name) and not (self.limits.has_zips and name.lower().endswith(".zip"))
                too_dense = info.file_size > max(free, ratio * info.compress_size)
                rules += [
                    (clean in members, "duplicate_name", "is in the ZIP twice", ZIP_AGAIN),
                    (is_nested, "nested_archive", "is an archive inside the ZIP", UNPACK),
                    (method not in METHODS, "compression_method", f"is packed with method {method}", DEFLATE),
                    (info.file_size > max_bytes, "file_too_large", too_big, "Leave it out, or split it."),
                    (too_dense, "ratio", f"expands to more than {ratio:g} times its size", COMPRESS),
                ]
            for is_broken, code, what, cure in rules:
                if is_broken:
                    raise ArchiveError(code, f"{shown_name(name)} {what}.", cure)
            if is_file:
                members[clean] = info
        if not members:
            raise ArchiveError("no_files", "The ZIP holds no files.", "Add images and masks, and zip again.")
        self._check_whole({name: info.file_size for name, info in members.items()})
        return members

    def _check_whole(self, sizes: dict[str, int]) -> None:
        # A ZIP bomb lets many entries share the same bytes, so that a few megabytes expand to petabytes.
        spans = sorted(
            (info.header_offset, info.header_offset + 30 + len(info.orig_filename) + info.compress_size)
            for info in self._zip.infolist()
        )
        begins = [begin for begin, _ in spans] + [self._zip.start_dir]
        if begins[0] < 0 or any(end > after for (_, end), after in zip(spans, begins[1:], strict=True)):
            raise ArchiveError("overlap", "Files inside the ZIP overlap: it is damaged or a trap.", ZIP_AGAIN)
        if sum(sizes.values()) > self.limits.max_expanded_bytes:
            reason = f"The ZIP expands to more than {self.limits.max_expanded_bytes / 2**30:.1f} GiB."
            raise ArchiveError("too_large", reason, SPLIT)
        packed = sum(size for name, size in sizes.items() if not _is_plain(name))
        if packed > max(self.limits.ratio_free_total_bytes, self.limits.max_ratio * self.path.stat().st_size):
            reason = f"The ZIP expands to more than {self.limits.max_ratio:g} times its size."
            raise ArchiveError("ratio", reason, COMPRESS)


def _is_plain(name: str) -> bool:
    return (known := FORMATS.get(suffix_of(name))) is not None and known.is_plain


def _check_directory(path: Path, limits: ArchiveLimits) -> None:
    """Refuse too many entries before zipfile makes an object of each: a huge directory must not fill the memory.

    Raises ArchiveError too_many_files, and zipfile.BadZipFile if the file has no valid end record.
    """
    too_many = ArchiveError("too_many_files", f"The ZIP holds more than {limits.max_entries} files.", SPLIT)
    with path.open("rb") as file:
        # The check must see the same end record that zipfile will use, so it calls zipfile's private function.
        # That function has kept its form in every version of Python 3.
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
        # An entry has 46 fixed bytes, followed by its name, extra field and comment, whose lengths are at byte 28.
        at += 46 + sum(struct.unpack_from("<3H", directory, at + 28))
        count += 1
        if count > limits.max_entries:
            raise too_many


def _decoded(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename
    if not info.flag_bits & 0x800 and not name.isascii():
        # macOS writes UTF-8 without setting the flag for it. zipfile then reads the name as cp437.
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.orig_filename
    return unicodedata.normalize("NFC", name).replace("\\", "/")


def shown_name(name: str) -> str:
    """Return a file name made safe for a message: control characters become "?", and a long name is cut."""
    name = CONTROL.sub("?", name)
    return name if len(name) <= MAX_SHOWN_LENGTH else name[: MAX_SHOWN_LENGTH - 3] + "..."
