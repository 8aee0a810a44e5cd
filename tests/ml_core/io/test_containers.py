"""ZIPs and folders: what is refused before anything is expanded, and what is written."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from medseg_site.shared.base import outages
from ml_core.io.containers import ArchiveError, ArchiveLimits, SafeArchive, is_archive, is_junk, list_folder

Member = str | zipfile.ZipInfo
ENTRY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
NOISE = random.Random(0).randbytes(100_000)


def make_zip(path: Path, members: dict[Member, bytes] | None = None, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for member, content in (members or {"images/a.png": b"image", "masks/a.png": b"mask"}).items():
            archive.writestr(member, content)
    return path


def refused(path: Path, **limits: Any) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught, SafeArchive(path, ArchiveLimits(**limits)):
        pass
    assert caught.value.cure
    return caught.value


def patch(path: Path, signature: bytes, offset: int, value: bytes, which: int = 0) -> Path:
    """Overwrite bytes of the `which`-th record with `signature`: b"PK\\x01\\x02" is an entry of the directory."""
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "upload.zip"


def test_members_are_listed_and_extracted(path: Path) -> None:
    make_zip(path, {"images/": b"", "images/a.png": NOISE, "masks/a.png": b""})
    with SafeArchive(path) as archive:
        assert archive.sizes == {"images/a.png": len(NOISE), "masks/a.png": 0}
        target = path.parent / "0001"
        archive.extract("images/a.png", target)
        assert target.read_bytes() == NOISE
        archive.extract("masks/a.png", target)
        assert target.read_bytes() == b""
    assert sorted(os.listdir(path.parent)) == ["0001", "upload.zip"]


def test_junk_and_odd_but_harmless_names(path: Path) -> None:
    junk = ["__MACOSX/images/._a.png", ".DS_Store", "images/Thumbs.db", "images/._b.png", "desktop.ini", ".git/x.zip"]
    make_zip(path, {**dict.fromkeys(junk, b"x"), "./images//a..png": b"1", "images\\b.png": b"2", "masks\\": b""})
    with SafeArchive(path) as archive:
        assert list(archive.sizes) == ["images/a..png", "images/b.png"]
        archive.extract("images/b.png", path.parent / "b")
    assert (path.parent / "b").read_bytes() == b"2"


def test_names_are_decoded(path: Path) -> None:
    """cp437 is the ZIP's own default; macOS writes decomposed UTF-8 without its flag."""
    make_zip(path, {"images/é.png": b"flagged", "images/X1.png": b"cp437", "images/XXX2.png": b"macOS"})
    data = path.read_bytes().replace(b"images/X1.png", b"images/\x811.png")
    path.write_bytes(data.replace(b"images/XXX2.png", b"images/" + "e\u0301".encode() + b"2.png"))
    with SafeArchive(path) as archive:
        assert list(archive.sizes) == ["images/é.png", "images/ü1.png", "images/é2.png"]
        archive.extract("images/é2.png", path.parent / "x")
    assert (path.parent / "x").read_bytes() == b"macOS"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "not_a_zip"),
        (b"Rar!\x1a\x07\x00" + NOISE, "not_a_zip"),
        (b"PK\x03\x04" + NOISE, "damaged_zip"),
        (END + bytes(8) + b"\xff\xff\xff\x7f" + bytes(6), "damaged_zip"),
        (END + struct.pack("<4H2LH", 0, 0, 1, 1, 20, 0, 0), "damaged_zip"),
        (END + bytes(18), "no_files"),
    ],
)
def test_what_is_no_zip_is_refused(content: bytes, code: str, path: Path) -> None:
    path.write_bytes(content)
    assert refused(path).code == code


def test_every_cut_of_a_zip_is_refused(path: Path) -> None:
    whole = make_zip(path).read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refused(path).code in ("damaged_zip", "not_a_zip")


def test_damaged_directories_never_raise_anything_else(path: Path) -> None:
    whole, chance = make_zip(path).read_bytes(), random.Random(1)
    begin = whole.index(ENTRY)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(3):
            data[chance.randrange(begin, len(data))] = chance.randrange(256)
        path.write_bytes(data)
        with suppress(ArchiveError), SafeArchive(path) as archive:
            for name in archive.sizes:
                archive.extract(name, path.parent / "out")
    assert {"upload.zip", "out"}.issuperset(os.listdir(path.parent))


UNSAFE = {
    "unsafe_path": r"../a.png images/../../a.png images\..\..\a.png /etc/passwd \\server\share\a.png C:\images\a.png "
    "__MACOSX/../../a.png ../",
    "unsafe_name": "images/a\x00.png images/a\x08.png images/\x7f[2J.png images/" + "a" * 2000,
    "nested_archive": "images/a.zip images/a.TAR.GZ images/a.csv.gz more.7z more.rar",
}


@pytest.mark.parametrize(("code", "name"), [(code, n) for code, names in UNSAFE.items() for n in names.split(" ")])
def test_unusable_names_refuse_the_archive(code: str, name: str, path: Path) -> None:
    # zipfile cleans names that it writes, so the name is put in afterwards.
    stand_in = "#" * len(name)
    make_zip(path, {"images/ok.nii.gz": b"1", stand_in: b"2"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(stand_in.encode(), name.encode()))
    error = refused(path)
    assert error.code == code
    assert name[:3].replace("\\", "/") in error.reason
    assert error.reason.isprintable()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(kind: int, path: Path) -> None:
    link = zipfile.ZipInfo("images/link.png")
    link.external_attr = (kind | 0o777) << 16
    make_zip(path, {link: b"/etc/passwd"})
    assert (refused(path).code, refused(path).reason) == ("link", "images/link.png is a link, not a file.")


def test_encrypted_entries_are_refused(path: Path) -> None:
    error = refused(patch(make_zip(path), ENTRY, 8, b"\x01\x00"))
    assert (error.code, error.reason) == ("encrypted", "images/a.png is encrypted.")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_whose_memory_cannot_be_bounded_are_refused(method: int, path: Path) -> None:
    assert refused(make_zip(path, method=method)).code == "compression_method"
    assert refused(patch(make_zip(path), ENTRY, 10, b"\x09\x00")).code == "compression_method"  # Deflate64


def test_same_name_twice_is_refused(path: Path) -> None:
    make_zip(path, {"images/a.png": b"1", "images\\a.png": b"2"})
    assert refused(path).code == "duplicate_name"


def test_overlapping_entries_are_refused(path: Path) -> None:
    """The overlapping kind of ZIP bomb: many entries that share one compressed stream."""
    make_zip(path, {f"images/{number}.png": NOISE for number in range(3)}, zipfile.ZIP_STORED)
    assert refused(patch(path, ENTRY, 42, bytes(4), which=1)).code == "overlap"
    make_zip(path)
    assert refused(patch(path, ENTRY, 20, struct.pack("<L", 400))).code == "overlap"


def test_limits_of_count_and_size(path: Path) -> None:
    make_zip(path, {f"images/{number}.png": NOISE for number in range(4)})
    with SafeArchive(path, ArchiveLimits(max_entries=4, max_file_bytes=len(NOISE), max_expanded_bytes=400_000)):
        pass
    assert refused(path, max_entries=3).code == "too_many_files"
    error = refused(path, max_file_bytes=len(NOISE) - 1)
    assert (error.code, error.reason[:12]) == ("file_too_large", "images/0.png")
    assert refused(path, max_expanded_bytes=399_999).code == "too_large"


def test_entries_are_counted_before_zipfile_reads_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count that the ZIP tells may lie, and a directory of gigabytes must not enter the memory."""
    make_zip(path, {f"images/{number}.png": b"" for number in range(50)})
    patch(path, END, 8, struct.pack("<2H", 1, 1))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert refused(path, max_entries=49).code == "too_many_files"
    patch(path, END, 12, struct.pack("<L", path.read_bytes().index(END)))
    assert refused(path, max_entries=3).code == "too_many_files"


def test_ratio_of_one_file_and_of_the_whole(path: Path) -> None:
    make_zip(path, {"images/a.png": NOISE, "masks/a.png": bytes(12_000_000)})
    error = refused(path)
    assert (error.code, error.reason[:11]) == ("ratio", "masks/a.png")
    with SafeArchive(path, ArchiveLimits(max_ratio=2000)):
        pass
    make_zip(path, {f"masks/{number}.png": bytes(3_000_000) for number in range(4)})
    error = refused(path)
    assert (error.code, error.reason[:7]) == ("ratio", "The ZIP")


@pytest.mark.parametrize("suffix", [".nii", ".NII", ".tif", ".bmp", ".dcm"])
def test_sparse_masks_of_plain_formats_may_shrink_as_far_as_deflate_goes(suffix: str, path: Path) -> None:
    make_zip(path, {"images/a.png": NOISE, **{f"masks/{number}{suffix}": bytes(12_000_000) for number in range(2)}})
    with SafeArchive(path) as archive:
        assert archive.sizes[f"masks/1{suffix}"] == 12_000_000
    # Their size stays bounded, and so do all other files, which they do not excuse.
    assert refused(path, max_expanded_bytes=24_000_000).code == "too_large"
    assert refused(path, max_file_bytes=11_999_999).code == "file_too_large"
    make_zip(path, {f"masks/0{suffix}": bytes(12_000_000), **{f"images/{n}.png": bytes(3_000_000) for n in range(4)}})
    assert refused(path).code == "ratio"


def test_a_ratio_that_deflate_cannot_reach_is_refused_for_every_format(path: Path) -> None:
    make_zip(path, {"masks/a.nii": bytes(12_000_000)})
    error = refused(patch(path, ENTRY, 24, struct.pack("<L", 2**31)))
    assert (error.code, error.reason) == ("ratio", "masks/a.nii expands to more than 1100 times its size.")


def test_zip64_is_read(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, archive.open("images/a.png", "w", force_zip64=True) as member:
        member.write(NOISE)
    data = path.read_bytes()
    start, at = data.index(ENTRY), data.index(END)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, at - start, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    end = END + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:at] + record + locator + end)
    with SafeArchive(path) as opened:
        assert opened.sizes == {"images/a.png": len(NOISE)}
    assert refused(path, max_entries=0).code == "too_many_files"


DAMAGE: dict[str, Callable[[Path], Path]] = {
    "shorter": lambda path: patch(path, ENTRY, 24, struct.pack("<L", 1000)),
    "longer": lambda path: patch(path, ENTRY, 24, struct.pack("<L", len(NOISE) + 1)),
    "flipped": lambda path: patch(path, NOISE[500:510], 0, b"\x00"),
    "renamed": lambda path: patch(path, LOCAL, 30, b"I"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_lying_or_damaged_member_leaves_nothing_behind(damage: str, path: Path) -> None:
    DAMAGE[damage](make_zip(path, {"images/a.png": NOISE}, zipfile.ZIP_STORED))
    with SafeArchive(path) as archive, pytest.raises(ArchiveError) as caught:
        archive.extract("images/a.png", path.parent / "out")
    assert caught.value.code == "damaged_file"
    assert "images/a.png" in caught.value.reason
    assert os.listdir(path.parent) == ["upload.zip"]


def test_header_that_lies_about_the_size_cannot_fill_the_disk(path: Path) -> None:
    """A million zeros that call themselves ten bytes, with the checksum of those ten."""
    make_zip(path, {"images/a.bmp": bytes(1_000_000)})
    for signature, crc in ((ENTRY, 16), (LOCAL, 14)):
        patch(path, signature, crc, struct.pack("<L", zipfile.crc32(bytes(10))))  # type: ignore[attr-defined]  # zlib's, by zipfile
        patch(path, signature, crc + 8, struct.pack("<L", 10))
    with SafeArchive(path) as archive:
        archive.extract("images/a.bmp", path.parent / "out")
    assert (path.parent / "out").stat().st_size == 10


def test_full_disk_is_no_fault_of_the_archive(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullFile(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with SafeArchive(make_zip(path)) as archive:
        monkeypatch.setattr(Path, "open", lambda self, mode: FullFile(self, mode))
        with pytest.raises(OSError, match="No space") as caught:
            archive.extract("images/a.png", path.parent / "out")
    assert outages.reason_of(caught.value)
    assert os.listdir(path.parent) == ["upload.zip"]


def test_a_folder_is_listed_without_junk_and_links_and_within_its_limits(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "a.dcm", ".DS_Store", "__MACOSX/a.dcm", "b/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "a.dcm")
    found = list_folder(tmp_path, ArchiveLimits(max_entries=2, max_expanded_bytes=10))
    assert list(found.items()) == [("a.dcm", tmp_path / "a.dcm"), ("b/2.dcm", tmp_path / "b/2.dcm")]
    for limits, code in (
        (ArchiveLimits(max_entries=1), "too_many_files"),
        (ArchiveLimits(max_expanded_bytes=9), "too_large"),
    ):
        with pytest.raises(ArchiveError) as caught:
            list_folder(tmp_path, limits)
        assert caught.value.code == code


def test_names_tell_junk_and_archives() -> None:
    assert [is_junk(name) for name in ("a/.x", "__MACOSX/a", "a/THUMBS.DB", "a.b/c..d", "macosx/a")] == [True] * 3 + [
        False
    ] * 2
    assert [is_archive(name) for name in ("a.ZIP", "a.tar.gz", "a.nii.gz", "zip/a.png")] == [True, True, False, False]


def test_a_zip_in_the_zip_is_a_file_where_it_is_allowed(path: Path) -> None:
    make_zip(path, {"a/b.zip": b"PK", "c.png": b"x"})
    with SafeArchive(path, ArchiveLimits(has_zips=True)) as archive:
        assert sorted(archive.sizes) == ["a/b.zip", "c.png"]
    assert refused(path).code == "nested_archive"
    make_zip(path, {"a.tar.gz": b"x"})
    assert refused(path, has_zips=True).code == "nested_archive"


def test_the_head_of_a_member_is_its_first_bytes_and_none_of_a_damaged_one(path: Path) -> None:
    make_zip(path, {"a.png": bytes(range(256)) * 4, "b.png": b"short"})
    with SafeArchive(path) as archive:
        assert archive.head("a.png") == (bytes(range(256)) * 2)[:352]
        assert archive.head("b.png") == b"short"
    whole = bytearray(path.read_bytes())
    whole[36:41] = b"\xff" * 5
    path.write_bytes(whole)
    with SafeArchive(path) as archive:
        assert archive.head("a.png") == b""
