"""The bad archives, images and masks, each with the answer that is right for it."""

from __future__ import annotations

import gzip
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import bad_files as make
from benchmarks.bad_files import SIDE, Entry, good_image, good_mask, good_pairs, noise, picture, square, zipped
from benchmarks.bad_inputs_client import Case, Send

GOOD = "ready"


def _upload(data: bytes, name: str = "bad.zip") -> Send:
    return lambda platform: platform.upload(data, name)


def archive(what: str, data: bytes, says: str, *, final: str = "error", name: str = "bad.zip") -> Case:
    refused = final == "400"
    return Case("archive", what, _upload(data, name), (400,) if refused else (201,), "" if refused else final, says)


def _pair_named(image: str, mask: str) -> bytes:
    return zipped([*good_pairs(2), (image, good_image(9)), (mask, good_mask())])


def archives() -> list[Case]:
    good = zipped(good_pairs(3))
    refused = "400"
    slip = [("images/../../../evil.png", good_image(9))]
    return [
        archive("text with the name x.zip", b"this is no archive", "not a ZIP", final=refused),
        archive("empty file", b"", "empty", final=refused),
        archive("cut off in the middle", good[: len(good) // 2], "damaged", final=refused),
        archive("first 200 bytes missing", good[200:], "ZIP"),
        archive("RAR file with the name x.zip", b"Rar!\x1a\x07\x01\0" + b"\0" * 99, "not a ZIP", final=refused),
        archive("encrypted members", make.encrypted(), "without a password"),
        archive("zip slip: images/../../../evil.png", zipped([*good_pairs(2), *slip]), "outside"),
        archive("absolute name /etc/passwd", zipped([*good_pairs(2), ("/etc/passwd", b"x")]), "outside"),
        archive("absolute name C:\\x.png", zipped([*good_pairs(2), ("C:\\x.png", b"x")]), "outside"),
        archive("..\\..\\x.png with backslashes", zipped([*good_pairs(2), ("..\\..\\x.png", b"x")]), "outside"),
        archive("symbolic link as an image", make.special("images/link.png", make.LINK), "is a link"),
        archive("character device as an image", make.special("images/null.png", make.DEVICE, b""), "is a link"),
        archive("ZIP inside the ZIP", zipped([*good_pairs(2), ("images/more.zip", good)]), "archive inside"),
        archive("bomb: 60 MB of zeros in 60 kB", zipped([("images/a.png", b"\0" * 60_000_000)]), "200 times"),
        archive(
            "bomb: 40 files of 9 MB of zeros each",
            zipped([(f"images/{n}.png", b"\0" * 9_000_000) for n in range(40)]),
            "200 times",
        ),
        archive("directory of 200,001 entries", make.many_entries(200_001), "200000 files"),
        archive("entries that share the same bytes", make.overlapping(), "overlap"),
        archive("no entries at all", zipped([]), "no files"),
        archive("only junk", zipped([("__MACOSX/._a.png", b"x"), (".DS_Store", b"x")]), "no files"),
        archive("images without folders", zipped([("a.png", good_image()), ("b.png", good_image(1))]), "a folder of"),
        archive("no masks folder", zipped(good_pairs(2)[:2]), "folder of masks"),
        archive("one name twice", zipped([*good_pairs(2), ("images/good0.png", good_image(5))]), "twice"),
        archive("no mask fits an image", zipped([*good_pairs(2)[:2], ("masks/other.png", good_mask())]), "pairs"),
        archive("a single pair", zipped(good_pairs(1)), "2 pairs"),
        archive("two images for one mask", _pair_named("images/good0.jpg", "masks/x.png"), "Keep one"),
        archive("wrong checksum of one member", make.wrong_crc(), "damaged", final=GOOD),
        archive(
            "local names differ from the directory's",
            make.patched(zipped(good_pairs(2)), 30, b"IMAGES/", record=b"PK\3\4"),
            "damaged",
        ),
        archive("control characters in a name", make.renamed(b"good0.png", b"g\x1b[31m.pn"), "usable file name"),
        archive("NUL in a name", make.renamed(b"good0.png", b"good\0.png"), "usable file name"),
        archive("name that is no UTF-8", make.renamed(b"good0", b"g\xff\xfe\xfdd", utf8=True), "damaged"),
        archive("name of 5,000 characters", _pair_named(f"images/{'x' * 5000}.png", "masks/x.png"), "usable file name"),
        archive("pair with a name of 900 characters", _pair_named(f"images/{'x' * 900}.png", f"masks/{'x' * 900}.png"), "", final=GOOD),
        archive("names in Unicode (allowed)", _pair_named("images/Müller-脳🧠.png", "masks/Müller-脳🧠.png"), "", final=GOOD),
        archive("zip64: parts on other disks", make.zip64(disks=7), "ZIP", final=refused),
        archive("zip64: a directory of 4 EiB", make.zip64(size=2**62), "ZIP"),
        archive("zip64: 2^60 entries (count is not believed)", make.zip64(count=2**60), "", final=GOOD),
        archive("end record with a huge directory", make.patched(good, 12, b"\xff\xff\xff\x0f", record=b"PK\5\6"), "ZIP"),
        archive("method BZIP2", zipped(good_pairs(2), zipfile.ZIP_BZIP2), "Deflate"),
        archive("method LZMA", zipped(good_pairs(2), zipfile.ZIP_LZMA), "Deflate"),
        archive("method 99", make.patched(zipped(good_pairs(2)), 10, b"\x63\0"), "method 99"),
        archive("sizes that are too small", make.patched(zipped(good_pairs(2)), 24, b"\x10\0\0\0"), "damaged"),
        archive("sizes of 4 GB for 1 kB", make.patched(zipped(good_pairs(2)), 24, b"\xfe\xff\xff\xff"), "200 times"),
        archive("file name of the upload: ../../x\\y", good, "", final=GOOD, name="../../x\\\\y\u202e.zip"),
    ]  # fmt: skip


def _image_in_dataset(name: str, data: bytes, other: Entry | None = None) -> bytes:
    """The bad image beside two good pairs."""
    stem = name.split(".")[0]
    return zipped([*good_pairs(2), (f"images/{name}", data), other or (f"masks/{stem}.png", good_mask())])


def bad_images() -> list[tuple[str, str, bytes, str]]:
    """What, file name, content, words of the answer."""
    png = good_image()
    jpeg = picture(noise(SIDE, SIDE), "JPEG")
    flat = make.volume()
    broken = bytearray(make.nifti(noise(64, 64, 4)))
    broken[-6] ^= 0xFF
    deep = np.zeros((8, 8, 4), np.float32)
    nan, infinite = deep.copy(), deep.copy()
    nan[0, 0, 0], infinite[0, 0, 0] = np.nan, np.inf
    return [
        ("truncated PNG", "a.png", png[: len(png) // 2], "truncated"),
        ("PNG of 100,000 x 100,000 pixels in 100 bytes", "a.png", make.png_claiming(100_000, 100_000), "pixels"),
        ("PNG of 2^31-1 pixels a side", "a.png", make.png_claiming(2**31 - 1, 2**31 - 1), "pixels"),
        ("PNG without pixels (0 x 0)", "a.png", make.png_claiming(0, 0), "decoded"),
        ("PNG with 80 MB of text in 80 kB", "a.png", make.png_with_text_bomb(), "decoded"),
        ("PNG with a damaged header", "a.png", png[:18] + b"\xff\xff" + png[20:], "decoded"),
        ("NIfTI with the ending .png", "a.png", make.nifti(flat), "NIfTI"),
        ("PNG with the ending .nii.gz", "a.nii.gz", png, "Rename"),
        ("SVG with the ending .png", "a.png", b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "content"),
        ("HTML with the ending .png", "a.png", b"<!doctype html><script>alert(1)</script>", "content"),
        ("animated GIF with the ending .png", "a.png", make.animated_gif(), "content"),
        ("0 bytes", "a.png", b"", "empty"),
        ("truncated JPG", "a.jpg", jpeg[: len(jpeg) // 2], "truncated"),
        ("BMP of 2 thousand million pixels", "a.bmp", make.bmp_claiming(2**30, 2), "pixels"),
        ("TIFF whose pages differ", "a.tif", make.tiff([noise(SIDE, SIDE), noise(8, 8)]), "Page 2"),
        ("TIFF with NaN", "a.tif", make.tiff([np.full((8, 8), np.nan, np.float32)]), "NaN"),
        ("TIFF cut off after its header", "a.tif", make.tiff([noise(SIDE, SIDE)])[:60], "decoded"),
        ("NIfTI with NaN", "a.nii.gz", make.nifti(nan), "NaN"),
        ("NIfTI with infinity", "a.nii.gz", make.nifti(infinite), "infinite"),
        ("4D NIfTI", "a.nii.gz", make.nifti(np.zeros((8, 8, 4, 3), np.int16)), "4 dimensions"),
        ("truncated .nii.gz", "a.nii.gz", make.nifti(noise(64, 64, 4))[:9000], "truncated"),
        (".nii.gz with a wrong checksum", "a.nii.gz", bytes(broken), "decoded"),
        (".nii.gz that claims 30,000^3 voxels", "a.nii.gz", make.nifti_claiming(30000, 30000, 30000), "voxels"),
        (
            ".nii.gz that claims 8 GB of float64",
            "a.nii.gz",
            make.nifti_claiming(1000, 1000, 999, datatype=64, bits=64, zeros=100_000),
            "GiB",
        ),
        (
            ".nii.gz that claims 1 GB and holds 100 kB",
            "a.nii.gz",
            make.nifti_claiming(1000, 1000, 999, zeros=100_000),
            "truncated",
        ),
        ("RGB NIfTI", "a.nii.gz", make.nifti_rgb(), "RGB"),
        ("complex NIfTI", "a.nii.gz", make.nifti(np.zeros((8, 8, 4), np.complex64)), "type complex64"),
        ("NIfTI without an affine", "a.nii.gz", make.nifti(flat, sform_code=1, srow_x=0, srow_y=0, srow_z=0), "affine"),
        ("NIfTI with negative sizes", "a.nii", make.nifti(flat, packed=False, dim=[3, -16, 16, 4, 1, 1, 1, 1]), "."),
        ("NIfTI with vox_offset 1e30", "a.nii", make.nifti(flat, packed=False, vox_offset=1e30), "size"),
        ("NIfTI of 7 dimensions of nothing", "a.nii", make.nifti(flat, packed=False, dim=[7, 0, 0, 0, 0, 0, 0, 0]), "."),
        ("gzip of text with the ending .nii.gz", "a.nii.gz", gzip.compress(b"hello"), "."),
        ("text with the ending .dcm", "a.dcm", b"hello, this is no DICOM file at all " * 9, "DICOM"),
        ("DICOM without pixels", "a.dcm", make.dicom(PixelData=None), "no pixels"),
        ("DICOM of 65,535 x 65,535 pixels", "a.dcm", make.dicom(Rows=65535, Columns=65535), "pixels"),
        ("DICOM of 10^9 frames", "a.dcm", make.dicom(NumberOfFrames="1000000000"), "voxels"),
        ("DICOM with too few pixels", "a.dcm", make.dicom(Rows=300, Columns=300), "truncated"),
        ("DICOM with Rows 0", "a.dcm", make.dicom(Rows=0), "no pixels"),
        ("DICOM with 7 bits allocated", "a.dcm", make.dicom(BitsAllocated=7), "decoded"),
        ("DICOM cut off", "a.dcm", make.dicom()[:700], "."),
        ("DICOM whose JPEG has another size", "a.dcm", make.dicom_jpeg((16, 16)), "64 x 64"),
        ("deflated DICOM", "a.dcm", make.dicom_deflated(), "deflated"),
        ("DICOM SEG object", "a.dcm", make.dicom(Modality="SEG"), "SEG"),
        ("DICOM with 3,000 nested sequences", "a.dcm", make.dicom_nested(3000), "decoded"),
        ("DICOM of 9 MB of zeros", "a.dcm", b"\0" * 9_000_000, "not DICOM"),
        ("DICOM whose header never ends", "a.dcm", make.dicom_endless(), "no end"),
        ("DICOM with slope 0", "a.dcm", make.dicom(RescaleSlope="0", RescaleIntercept="0"), "slope"),
    ]  # fmt: skip


def images() -> list[Case]:
    cases = []
    for what, name, data, says in bad_images():
        cases.append(Case("image", f"{what}, in a dataset", _upload(_image_in_dataset(name, data)), (201,), GOOD, says))
        expected: tuple[tuple[int, ...], str] = ((201,), "failed") if data else ((400,), "")
        cases.append(Case("image", f"{what}, to segment", _segment(name, data), *expected, says))
    volumes = [
        ("uneven gaps", make.dicom_series(0, 1, 2, 9), "evenly"),
        ("two slices at one place", make.dicom_series(0, 1, 1, 2), "same position"),
        (
            "two series mixed",
            make.dicom_series(0, 1) + make.dicom_series(2, 3, series="9.9", start=5),
            "2 DICOM series",
        ),
        ("a PNG among the slices", [*make.dicom_series(0, 1), ("x.png", good_image())], "not a DICOM"),
        ("an archive among the slices", [*make.dicom_series(0, 1), ("x.zip", zipped([]))], "Unpack"),
        ("one slice of another size", [*make.dicom_series(0, 1), ("z.dcm", make.dicom(noise(9, 9).astype(np.uint16)))], "size"),
        ("a slice of 300 MB of zeros in 300 kB", [*make.dicom_series(0, 1), make.bomb("z.dcm", 300_000_000)], "times"),
        ("nothing in it", [], "no DICOM"),
    ]  # fmt: skip
    for what, entries, says in volumes:
        data = zipped(entries)
        cases.append(Case("image", f"ZIP of a series: {what}", _segment("series.zip", data), (201,), "failed", says))
    lzma = zipped(make.dicom_series(0, 1), zipfile.ZIP_LZMA)
    cases += [
        Case("image", "ZIP of a series: method LZMA", _segment("series.zip", lzma), (201,), "failed", "Deflate"),
        Case("image", "CMYK JPG (allowed)", _segment("a.jpg", make.cmyk_jpeg()), (201,), "completed", ""),
        Case(
            "image",
            "TIFF whose page points at itself",
            _segment("a.tif", make.tiff_loop()),
            (201,),
            "failed",
            "decoded",
        ),
        Case("image", "GIF", _segment("a.gif", make.animated_gif()), (415,), "", ".gif"),
        Case("image", "program with the ending .exe", _segment("a.exe", b"MZ" * 99), (415,), "", ".exe"),
        Case("image", "file name of 5,000 characters", _segment("x" * 5000 + ".png", b"junk"), (400,), "", "header"),
        Case(
            "image", "file name of 600 characters", _segment("x" * 600 + ".png", b"junk"), (201,), "failed", "content"
        ),
    ]
    return cases


def _segment(name: str, image: bytes, mask: Entry | None = None) -> Send:
    return lambda platform: platform.segment(name, image, mask)


def bad_masks() -> list[tuple[str, str, bytes, str]]:
    """What, name, content, words of the answer; each for a PNG image of SIDE x SIDE."""
    ramp = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    nan = np.full((SIDE, SIDE), np.nan, np.float32)
    flat = np.zeros((SIDE, SIDE, 1), np.int32)
    return [
        ("another shape", "m.png", picture(square(16)), "16 x 16"),
        ("a photograph", "m.png", picture(noise(SIDE, SIDE, seed=3)), "values"),
        ("noise in RGB", "m.png", picture(noise(SIDE, SIDE, 3)), "distinct values"),
        ("a grey JPG photograph", "m.jpg", picture(noise(SIDE, SIDE), "JPEG"), "JPEG"),
        ("65,000 values of 16 bits", "m.png", picture(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)), "values"),
        ("NaN", "m.tif", make.tiff([nan]), "NaN"),
        ("probabilities", "m.tif", make.tiff([ramp]), "whole numbers"),
        ("values below zero", "m.nii.gz", make.nifti(flat - 7), "PNG"),
        ("values over 65,535", "m.nii.gz", make.nifti(flat + 70_000), "PNG"),
        ("a volume", "m.nii.gz", make.nifti(np.zeros((SIDE, SIDE, 3), np.uint8)), "its mask is"),
        ("truncated", "m.png", good_mask()[:60], "."),
        ("0 bytes", "m.png", b"", "empty"),
    ]  # fmt: skip


def masks() -> list[Case]:
    cases = []
    for what, name, data, says in bad_masks():
        pair = _image_in_dataset("m.png", good_image(7), (f"masks/{name}", data))
        cases.append(Case("mask", f"{what}, in a dataset", _upload(pair), (201,), GOOD, says))
        if data:
            send = _segment("a.png", good_image(), (name, data))
            cases.append(Case("mask", f"{what}, as a reference", send, (201,), "failed", ""))
    one = [
        (name, picture(square(value=0))) if name.startswith("masks") else (name, data) for name, data in good_pairs(3)
    ]
    coded = [*good_pairs(2), ("images/m.png", good_image(7)), ("masks/m.png", picture(_colours(2)))]
    many = [(f"images/{n}.png", good_image(n)) for n in range(4)]
    many += [(f"masks/{n}.png", picture(_values(60 * n, 60))) for n in range(4)]
    shifted = np.eye(4)
    shifted[0, 3] = 40
    volumes = [(f"images/v{n}.nii.gz", make.nifti(make.volume(n))) for n in range(3)]
    volumes += [
        (f"masks/v{n}.nii.gz", make.nifti((make.volume(n) > 99).astype(np.uint8), shifted if n == 2 else None))
        for n in range(3)
    ]
    jpeg = [*good_pairs(2), ("images/m.png", good_image(7)), ("masks/m.jpg", picture(square(), "JPEG", quality=95))]
    return [
        *cases,
        archive("masks of one value only", zipped(one), "one value"),
        archive("one mask in colours, the others in numbers", zipped(coded), "Code all masks", final=GOOD),
        archive("240 values over four masks", zipped(many), "128"),
        archive("NIfTI mask with another origin", zipped(volumes), "starts at", final=GOOD),
        archive("black and white JPG mask (allowed, with a warning)", zipped(jpeg), "JPEG", final=GOOD),
    ]


def _values(first: int, count: int) -> NDArray[Any]:
    return (first + np.arange(SIDE * SIDE) % count).astype(np.uint16).reshape(SIDE, SIDE)


def _colours(count: int) -> NDArray[Any]:
    mask = np.zeros((SIDE, SIDE, 3), np.uint8)
    mask[: SIDE // count, :, 0] = 200
    return mask


def batches() -> list[Case]:
    def batch(what: str, data: bytes, says: str, final: str = "failed") -> Case:
        refused = final == ""
        send: Send = lambda platform: platform.batch(data)  # noqa: E731 (the data of this call)
        return Case("batch", what, send, (400,) if refused else (201,), final, says)

    two_bad = [("a.png", b"junk"), ("b.png", b"<svg/>")]
    mixed = [("good.png", good_image()), ("bad.png", b"junk"), ("notes.txt", b"x")]
    return [
        batch("text as the archive of a batch", b"junk", "not a ZIP", ""),
        batch("zip slip in a batch", zipped([("../x.png", good_image())]), "outside"),
        batch("no image in a batch", zipped([("a.txt", b"x")]), "no image"),
        batch("only broken images in a batch", zipped(two_bad), "No image of the batch"),
        batch("zip64 of several disks as a batch", make.zip64(disks=7), "ZIP", ""),
        batch("one good image among broken ones", zipped(mixed), "", "completed"),
    ]
