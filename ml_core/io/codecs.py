"""The decoder for each DICOM transfer syntax, and a pydicom plugin that decodes JPEG with imagecodecs.

By default pydicom tries every installed decoder. It starts with GDCM, which ends the process on a damaged JPEG. This
module names one decoder for each transfer syntax, so that other installed libraries change nothing.
"""

from __future__ import annotations

from typing import Any

import imagecodecs
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_PLUGINS: dict[UID, str] = {
    **dict.fromkeys(_JPEG, "imagecodecs"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((*_JPEG_2000, RLELossless), "pylibjpeg"),
}


def stored_pixels(dataset: Dataset) -> NDArray[Any]:
    """Decode the pixels of a file, ([F,] H, W[, C]); YBR is converted to RGB. Raises whatever the decoder raises."""
    # Uncompressed pixels need no plugin.
    plugin = _PLUGINS.get(dataset.file_meta.TransferSyntaxUID, "")
    try:
        return pixel_array(dataset, decoding_plugin=plugin)
    except BaseException as error:
        # The RLE decoder is written in Rust. Its panics are no Exception, so callers would not catch them.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError("The decoder panicked.") from error


def is_available(syntax: UID) -> bool:
    """Whether `decode_frame` supports a transfer syntax. pydicom requires this function of a plugin."""
    return syntax in _JPEG


def decode_frame(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode one JPEG frame (2 to 16 bits, lossy or lossless) to the bytes of an array (H, W) or (H, W, 3).

    The colour space is not converted. Raises ValueError if the shape differs from the DICOM header, and an error of
    imagecodecs if the stream is damaged.
    """
    samples = runner.samples_per_pixel
    # Equal input and output colour spaces mean no conversion; pydicom converts the colours afterwards.
    space = "YCBCR" if samples == 3 else "GRAYSCALE"
    pixels = imagecodecs.jpeg8_decode(stream, colorspace=space, outcolorspace=space)
    expected = (runner.rows, runner.columns, 3)[: 3 if samples == 3 else 2]
    if pixels.shape != expected:
        raise ValueError(f"The JPEG holds pixels of {pixels.shape}, and the header says {expected}.")
    runner.set_option("bits_allocated", pixels.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    return pixels.tobytes()


for _syntax in _JPEG:
    get_decoder(_syntax).add_plugin("imagecodecs", (__name__, "decode_frame"))
