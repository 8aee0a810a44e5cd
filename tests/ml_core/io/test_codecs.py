"""DICOM's compressed transfer syntaxes: what comes back of each, and what is said about damaged frames."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ml_core.io import ImageError, read_image
from tests.synthetic import Array, dicom_dataset, save_dicom, write_jpg

ROWS, COLUMNS = np.mgrid[:64, :72]
WAVES = (np.sin(ROWS / 5) + np.cos(COLUMNS / 7)) / 4 + 0.5
GREY = (WAVES * 255).astype(np.uint8)
TWELVE_BITS = (WAVES * 4095).astype(np.uint16)
SIGNED = (WAVES * 4000 - 2000).astype(np.int16)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)

PREDICTORS = {JPEGLossless: 6, JPEGLosslessSV1: 1}
LOSSLESS = (*PREDICTORS, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, RLELossless)


def compressed(array: Array, syntax: UID, **tags: Any) -> Dataset:
    """`array` in a transfer syntax: in those that pydicom cannot write, encoded by imagecodecs."""
    dataset = dicom_dataset(array, **tags)
    if syntax in (JPEGLSLossless, JPEG2000Lossless, RLELossless):
        dataset.compress(syntax, generate_instance_uid=False)
        return dataset
    volume = array if array.ndim == 3 and array.shape[-1] != 3 else array[None]
    return with_frames(dataset, syntax, [encoded(frame, syntax, dataset.BitsStored) for frame in volume])


def encoded(frame: Array, syntax: UID, bits: int) -> bytes:
    if syntax in (HTJ2K, HTJ2KLossless):
        return bytes(imagecodecs.htj2k_encode(frame, reversible=syntax == HTJ2KLossless))
    unsigned = frame.view(f"u{frame.itemsize}")
    if syntax == JPEGExtended12Bit:
        return bytes(imagecodecs.jpeg8_encode(unsigned, level=95, bitspersample=bits))
    space = "RGB" if frame.ndim == 3 else None
    return bytes(
        imagecodecs.jpeg8_encode(
            unsigned,
            lossless=True,
            predictor=PREDICTORS[syntax],
            bitspersample=bits,
            colorspace=space,
            outcolorspace=space,
        )
    )


def with_frames(dataset: Dataset, syntax: UID, frames: list[bytes]) -> Dataset:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].is_undefined_length = True
    return dataset


def read(dataset: Dataset, folder: Path) -> Array:
    return read_image(save_dicom(dataset, folder / "a.dcm")).array


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("array", [GREY, TWELVE_BITS, SIGNED], ids=["8 bit", "12 bit", "signed"])
def test_lossless_grey_comes_back_as_it_was(tmp_path: Path, syntax: UID, array: Array) -> None:
    tags = {"BitsStored": 12, "HighBit": 11} if array is TWELVE_BITS else {}
    found = read(compressed(array, syntax, **tags), tmp_path)
    assert found.dtype == array.dtype
    assert np.array_equal(found[0], array)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_lossless_colours_and_frames_come_back_as_they_were(tmp_path: Path, syntax: UID) -> None:
    colour = compressed(RGB, syntax)
    assert np.array_equal(read(colour, tmp_path), RGB.transpose(2, 0, 1))
    volume = np.stack([TWELVE_BITS, TWELVE_BITS // 2, TWELVE_BITS // 3])
    frames = compressed(volume, syntax, PixelSpacing=None, ImagePositionPatient=None, ImageOrientationPatient=None)
    assert np.array_equal(read(frames, tmp_path)[0], volume)


def test_lossy_grey_is_as_close_as_its_encoder_promised(tmp_path: Path) -> None:
    twelve_bits = read(compressed(TWELVE_BITS, JPEGExtended12Bit, BitsStored=12, HighBit=11), tmp_path)
    assert 0 < np.abs(twelve_bits[0].astype(int) - TWELVE_BITS).max() < 25
    near = dicom_dataset(TWELVE_BITS)
    near.compress(JPEGLSNearLossless, jls_error=3, generate_instance_uid=False)
    assert np.abs(read(near, tmp_path)[0].astype(int) - TWELVE_BITS).max() == 3
    wavelets = dicom_dataset(GREY)
    wavelets.compress(JPEG2000, j2k_psnr=[50], generate_instance_uid=False)
    assert 0 < np.abs(read(wavelets, tmp_path)[0].astype(int) - GREY).max() < 10
    assert np.abs(read(compressed(GREY, HTJ2K), tmp_path)[0].astype(int) - GREY).max() < 3


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit], ids=lambda syntax: syntax.keyword)
def test_colours_of_a_jpeg_are_turned_to_rgb_once(tmp_path: Path, syntax: UID) -> None:
    path = write_jpg(tmp_path / "a.jpg", RGB)  # YCbCr, as its JFIF header says
    for claimed in ("YBR_FULL_422", "YBR_FULL", "RGB"):
        dataset = dicom_dataset(RGB, PhotometricInterpretation=claimed)
        found = read(with_frames(dataset, syntax, [path.read_bytes()]), tmp_path)
        assert np.abs(found.astype(int) - read_image(path).array).max() <= 2
    stream = bytes(imagecodecs.jpeg8_encode(RGB, level=95, outcolorspace="RGB"))
    found = read(with_frames(dicom_dataset(RGB), syntax, [stream]), tmp_path)
    assert np.abs(found.transpose(1, 2, 0).astype(int) - RGB).max() < 12


def sample(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def test_files_that_other_programs_wrote() -> None:
    gdcm, rle = (read_image(sample(name)).array for name in ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"))
    assert np.array_equal(gdcm, rle)
    twelve_bits = read_image(sample("JPGExtended.dcm")).array[0]
    # As the JPEG committee's libjpeg decodes it; another inverse transform may round otherwise.
    expected = [244, 242, 249, 260, 218, 219, 221, 223, 220, 210]
    assert np.abs(twelve_bits[420, 140:150].astype(int) - expected).max() <= 1
    # Its scan says a range of coefficients that does not belong to it, and is good otherwise.
    assert np.array_equal(read_image(sample("JPEG-lossy.dcm")).array[0], twelve_bits)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_a_frame_cut_off_is_refused(tmp_path: Path, syntax: UID) -> None:
    dataset = compressed(TWELVE_BITS, syntax)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError) as caught:
            read(with_frames(dataset, syntax, [frame[: int(len(frame) * share)]]), tmp_path)
        assert caught.value.code == "unreadable"


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEGExtended12Bit], ids=lambda syntax: syntax.keyword)
def test_damaged_frames_are_read_or_refused_and_end_no_process(tmp_path: Path, syntax: UID) -> None:
    dataset = compressed(TWELVE_BITS, syntax, BitsStored=12, HighBit=11)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(frame)
        for place in rng.integers(2, min(len(frame), 200), size=3):
            damaged[place] = rng.integers(256)
        try:
            read(with_frames(dataset, syntax, [bytes(damaged)]), tmp_path)
        except ImageError:
            refused += 1
    assert refused > 10


def test_headers_that_mislead_a_decoder_are_refused(tmp_path: Path) -> None:
    rle = compressed(GREY, RLELossless)
    (frame,) = generate_frames(rle.PixelData, number_of_frames=1)
    beyond = struct.pack("<2I", 1, len(frame) + 1000) + frame[8:]
    boxes = bytes(imagecodecs.jpeg2k_encode(GREY, codecformat="jp2", reversible=True))
    no_length = boxes[:12] + bytes(4) + boxes[16:]
    huge = bytearray(imagecodecs.jpeg8_encode(np.zeros((9000, 9000), np.uint8)))
    huge[2:2] = b"junk"  # decoders skip it, and then find the size
    for syntax, stream in ((RLELossless, beyond), (JPEG2000Lossless, no_length), (JPEGBaseline8Bit, bytes(huge))):
        with pytest.raises(ImageError) as caught:
            read(with_frames(dicom_dataset(GREY), syntax, [stream]), tmp_path)
        assert caught.value.code == "unreadable"
    good = with_frames(dicom_dataset(GREY), JPEG2000Lossless, [boxes])
    assert np.array_equal(read(good, tmp_path)[0], GREY)
