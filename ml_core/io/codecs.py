"""Which library decodes which DICOM frames, and the plugin with which imagecodecs decodes JPEG for pydicom.

pydicom tries every decoder that is installed, GDCM first, which ends the process on damaged JPEG. So the decoder is
named here for each transfer syntax: what else is installed changes nothing.
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
    """Pixels as pydicom lays them out, ([F,] H, W[, C]); YBR is turned to RGB. Raises whatever a decoder raises."""
    # Pixels that are not compressed need no plugin.
    plugin = _PLUGINS.get(dataset.file_meta.TransferSyntaxUID, "")
    try:
        return pixel_array(dataset, decoding_plugin=plugin)
    except BaseException as error:
        # The decoder of RLE is Rust, and a panic of Rust is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError("The decoder panicked.") from error


def is_available(syntax: UID) -> bool:
    """Whether `decode_frame` decodes a transfer syntax; pydicom asks."""
    return syntax in _JPEG


def decode_frame(stream: bytes, runner: DecodeRunner) -> bytes:
    """One frame of JPEG (2 to 16 bits, lossy or lossless), (H, W, C) in the colours that it was coded in.

    Raises ValueError where it has another shape than the header says, and imagecodecs' error on a damaged stream.
    """
    samples = runner.samples_per_pixel
    # Equal colour spaces before and after are no conversion, which is pydicom's part.
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
