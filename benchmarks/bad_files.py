"""Makes broken, lying and hostile files, as a stranger could upload them. The functions return the bytes of a file."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import warnings
import zipfile
import zlib
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit

SIDE = 32
Entry = tuple[str, bytes]


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def picture(array: NDArray[np.generic], kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def square(side: int = SIDE, value: int = 255) -> NDArray[np.uint8]:
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = value
    return mask


@cache
def good_image(seed: int = 0) -> bytes:
    return picture(noise(SIDE, SIDE, seed=seed))


@cache
def good_mask() -> bytes:
    return picture(square())


def good_pairs(count: int) -> list[Entry]:
    """Entries images/good0.png, …, masks/good0.png, …, which can all be used."""
    images = [(f"images/good{n}.png", good_image(n)) for n in range(count)]
    return images + [(f"masks/good{n}.png", good_mask()) for n in range(count)]


def zipped(entries: list[Entry], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        # zipfile warns of names that come twice.
        warnings.simplefilter("ignore")
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def special(name: str, kind: int, target: bytes = b"/etc/passwd") -> bytes:
    """A dataset's ZIP with one member that is a link or a device."""
    buffer = io.BytesIO(zipped(good_pairs(2)))
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(info, target)
    return buffer.getvalue()


def patched(data: bytes, at: int, value: bytes, *, record: bytes = b"PK\x01\x02", every: bool = True) -> bytes:
    """Overwrite a ZIP with `value`, `at` bytes after the start of each record of this kind, or only of the first."""
    changed, start = bytearray(data), data.find(record)
    while start >= 0:
        changed[start + at : start + at + len(value)] = value
        start = data.find(record, start + 4) if every else -1
    return bytes(changed)


def encrypted() -> bytes:
    """A ZIP whose members claim to be encrypted."""
    return patched(patched(zipped(good_pairs(2)), 8, b"\1\0"), 6, b"\1\0", record=b"PK\3\4")


def wrong_crc() -> bytes:
    """Three good pairs; the checksum of the first image is wrong."""
    data = zipped(good_pairs(3))
    return patched(patched(data, 16, b"\0\0\0\0", every=False), 14, b"\0\0\0\0", record=b"PK\3\4", every=False)


def renamed(old: bytes, new: bytes, *, utf8: bool = False) -> bytes:
    """Replace the name of a member with bytes that no ZIP program would write. utf8: claim that they are UTF-8."""
    assert len(old) == len(new)
    data = zipped(good_pairs(2)).replace(old, new)
    return patched(patched(data, 8, b"\0\x08"), 6, b"\0\x08", record=b"PK\3\4") if utf8 else data


def overlapping() -> bytes:
    """Every directory entry points at the first file's bytes."""
    return patched(zipped(good_pairs(2)), 42, b"\0\0\0\0")


def many_entries(count: int) -> bytes:
    """A directory of `count` entries, without any files."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, count * len(entry), 0, 0)
    return entry * count + end


def zip64(*, disks: int = 1, size: int = 0, count: int = 4) -> bytes:
    """A ZIP whose 64-bit end record lies about disks, size or number of entries."""
    data = zipped(good_pairs(2))
    at = data.rindex(b"PK\5\6")
    start = struct.unpack_from("<L", data, at + 16)[0]
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size or at - start, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, disks)
    return (
        data[:at] + record + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims this size."""
    header = png_chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 99)) + png_chunk(b"IEND", b"")


def png_with_text_bomb() -> bytes:
    """A PNG with 80 MB of text, compressed to 80 kB."""
    data, text = good_image(), b"key\0\0" + zlib.compress(b"\0" * 80_000_000, 9)
    return data[:33] + png_chunk(b"zTXt", text) + data[33:]


def cmyk_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(SIDE, SIDE, 4), "CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def animated_gif() -> bytes:
    frames = [Image.fromarray(noise(SIDE, SIDE, seed=n)) for n in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def tiff(pages: list[NDArray[np.generic]]) -> bytes:
    first, *others = [Image.fromarray(page) for page in pages]
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


def tiff_loop() -> bytes:
    """A TIFF whose first page says that the next page is itself."""
    data = bytearray(tiff([noise(SIDE, SIDE)]))
    at = struct.unpack_from("<L", data, 4)[0]
    entries = struct.unpack_from("<H", data, at)[0]
    struct.pack_into("<L", data, at + 2 + 12 * entries, at)
    return bytes(data)


def bmp_claiming(width: int, height: int) -> bytes:
    """A small BMP whose header claims this size."""
    data = bytearray(picture(noise(SIDE, SIDE), "BMP"))
    struct.pack_into("<ll", data, 18, width, height)
    return bytes(data)


def nifti(
    array: NDArray[np.generic], affine: NDArray[np.float64] | None = None, *, packed: bool = True, **header: object
) -> bytes:
    """A .nii.gz of the array, or a .nii without `packed`. header: fields of the header to overwrite, unchecked."""
    image: Any = nib.Nifti1Image
    head: Any = nib.Nifti1Header
    made = image(array, np.eye(4) if affine is None else affine)
    data = bytearray(made.to_bytes())
    raw = head(bytes(data[:348]), check=False)
    for name, value in header.items():
        raw[name] = value
    data[:348] = raw.binaryblock
    return gzip.compress(bytes(data), 6) if packed else bytes(data)


def nifti_claiming(*shape: int, datatype: int = 2, bits: int = 8, zeros: int = 1000) -> bytes:
    """A small .nii.gz whose header claims `shape`, but which has only `zeros` bytes of values."""
    dim = [len(shape), *shape, *[1] * (7 - len(shape))]
    base = nifti(np.zeros((2, 2, 2), np.uint8), packed=False, dim=dim, datatype=datatype, bitpix=bits)
    return gzip.compress(base[:352] + b"\0" * zeros, 9)


def nifti_rgb() -> bytes:
    colour = np.zeros((8, 8, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    return nifti(colour)


def volume(seed: int = 0) -> NDArray[np.int16]:
    return noise(16, 16, 4, seed=seed).astype(np.int16)


def dicom(pixels: NDArray[np.generic] | None = None, **changes: object) -> bytes:
    """A CT slice. changes: keyword → the value of the element; None removes it."""
    pixels = noise(SIDE, SIDE).astype(np.uint16) if pixels is None else pixels
    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID, made.SeriesInstanceUID = CTImageStorage, "1.2.3", "1.2.4"
    made.Modality, made.PatientID = "CT", "secret-patient"
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    made.PixelSpacing, made.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
    made.ImagePositionPatient = [0, 0, 0]
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(buffer, made, enforce_file_format=False)
    return buffer.getvalue()


def dicom_series(*places: float, series: str = "1.2.4", start: int = 0) -> list[Entry]:
    """One slice for each place along the normal, in mm. start: the number of the first file name."""
    return [
        (f"{start + n}.dcm", dicom(ImagePositionPatient=[0, 0, z], SeriesInstanceUID=series, InstanceNumber=n + 1))
        for n, z in enumerate(places)
    ]


def dicom_jpeg(claimed: tuple[int, int]) -> bytes:
    """A JPEG of 64 x 64 pixels, in a DICOM file whose header claims another size (rows, columns)."""
    stream = picture(noise(64, 64), "JPEG")
    frames = pydicom.encaps.encapsulate([stream])
    rows, columns = claimed
    return dicom(
        PixelData=frames, Rows=rows, Columns=columns, BitsAllocated=8, BitsStored=8, HighBit=7, syntax=JPEGBaseline8Bit
    )


PLAIN_UID = ExplicitVRLittleEndian.encode() + b"\0"
DEFLATED_UID = DeflatedExplicitVRLittleEndian.encode()


def dicom_deflated(behind: int) -> bytes:
    """A deflated file with a private element of so many zeros behind its pixels."""
    data = dicom()
    start = data.index(b"\x08\0\x16\0UI")
    plain, deflated = (struct.pack("<H", len(uid)) + uid for uid in (PLAIN_UID, DEFLATED_UID))
    head = data[:start].replace(plain, deflated)
    element = struct.pack("<HH2sHL", 0x7FE1, 0x0010, b"OB", 0, behind) + bytes(behind)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return head + packer.compress(data[start:] + element) + packer.flush()


def dicom_nested(depth: int) -> bytes:
    """Sequences within sequences, each of undefined length."""
    inner = Dataset()
    inner.CodeValue = "x"
    outer = Dataset()
    outer.ConceptNameCodeSequence = Sequence([inner])
    data = dicom()
    at = data.index(struct.pack("<HH2s", 0x0028, 0x0002, b"US"))
    start = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return data[:at] + (start + item) * depth + data[at:]


def dicom_endless() -> bytes:
    """A good start, then the same empty element a million times."""
    data = dicom()
    at = data.index(struct.pack("<HH2s", 0x0028, 0x0002, b"US"))
    return data[:at] + struct.pack("<HH2sH", 0x0008, 0x0050, b"SH", 0) * 1_000_000 + data[at:]


def bomb(member: str, size: int) -> Entry:
    """An entry of `size` zeros, which a ZIP compresses to nearly nothing."""
    return member, b"\0" * size


LINK, DEVICE = stat.S_IFLNK, stat.S_IFCHR
