"""What kind of file the first bytes are, whatever the file is called."""

from __future__ import annotations

import zlib

from ml_core.io.formats import FORMATS, Kind, suffix_of

# The first bytes of a file that `kind_of` needs.
HEAD_BYTES = 352

_RASTERS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",
    b"MM\0+": ".tif",
}
# The sizes of the headers that a BMP file may have. Two letters alone are no signature.
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP = b"\x1f\x8b"
# The header's first field is its size: 348 for NIfTI-1, 540 for NIfTI-2, in either byte order.
_NIFTI_SIZES = (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
# Explicit VRs of the first elements of a DICOM data set. Its group is 2 or 8, in little-endian order.
_FIRST_GROUPS = (b"\x02\0", b"\x08\0")
_FIRST_VRS = (b"UL", b"OB", b"CS", b"UI", b"DA", b"TM", b"SH", b"LO", b"PN", b"SQ", b"DT", b"IS")


def kind_of(head: bytes) -> Kind | None:
    """Recognise the kind of a file by its first HEAD_BYTES bytes; None if they match no format for certain."""
    # DICOM is tested before TIFF, because a DICOM preamble may hold a TIFF header (such a file is both).
    if head[128:132] == b"DICM":
        return "dicom"
    if _raster_suffix(head):
        return "raster"
    if head.startswith(_ZIPS):
        return "series"
    start = _gunzipped(head) if head.startswith(_GZIP) else head
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    # The first bytes of a compressed file can expand to less than a whole header.
    return "nifti" if start is not head and len(start) < 348 and start[:4] in _NIFTI_SIZES else None


def is_bare_dicom(head: bytes) -> bool:
    """Whether a file looks like a DICOM data set without the usual preamble. Only a file of no other kind is asked.

    Such a file starts with an element of group 2 or 8, which has a known type or (implicit VR) a short, even length.
    """
    if len(head) < 16 or head[:2] not in _FIRST_GROUPS or int.from_bytes(head[2:4], "little") > 0x0100:
        return False
    length = int.from_bytes(head[4:8], "little")
    return head[4:6] in _FIRST_VRS or (length < 1024 and length % 2 == 0)


def is_dicom(name: str, head: bytes) -> bool:
    """Whether a file is DICOM by its content or, where that is not certain, by its content and its name together."""
    kind = kind_of(head)
    if kind is not None:
        return kind == "dicom"
    claimed = FORMATS.get(suffix_of(name))
    return claimed.kind == "dicom" if claimed else is_bare_dicom(head)


def suffix_by_content(name: str, head: bytes) -> str | None:
    """The ending to keep a file under: that of its name if it is a known one, else that of its content.

    None if neither says what the file is.
    """
    suffix = suffix_of(name)
    if suffix in FORMATS:
        return suffix
    match kind_of(head):
        case "raster":
            return _raster_suffix(head)
        case "nifti":
            return ".nii.gz" if head.startswith(_GZIP) else ".nii"
        case "series":
            return ".zip"
        case "dicom":
            return ".dcm"
    return ".dcm" if is_bare_dicom(head) else None


def _raster_suffix(head: bytes) -> str | None:
    if head.startswith(b"BM"):
        return ".bmp" if int.from_bytes(head[14:18], "little") in _BMP_HEADERS else None
    return next((suffix for start, suffix in _RASTERS.items() if head.startswith(start)), None)


def _gunzipped(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""
