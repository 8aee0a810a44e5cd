"""From an uploaded ZIP to a ready dataset, or to one sentence that says why not."""

from __future__ import annotations

import gzip
import io
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from datasets.check import check
from datasets.models import Dataset
from datasets.services import create_dataset_from_upload
from medseg_site.demo import draw_cells, png
from medseg_site.shared.jobs import reaper
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.splits import split_cases

pytestmark = pytest.mark.django_db


def picture(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return draw_cells(np.random.default_rng(seed))


def zipped(files: dict[str, bytes]) -> SimpleUploadedFile:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return SimpleUploadedFile("set.zip", buffer.getvalue())


def ingest(user: Any, files: dict[str, bytes]) -> Dataset:
    dataset = create_dataset_from_upload(user=user, name="set", archive=zipped(files))
    check(dataset.pk)
    dataset.refresh_from_db()
    return dataset


def pairs(count: int, mask: Any = lambda labels: png(labels * 100)) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for index in range(count):
        image, labels = picture(index)
        files |= {f"images/c{index}.png": png(image), f"masks/c{index}.png": mask(labels)}
    return files


def objects(media: Path) -> list[str]:
    return sorted(str(path.relative_to(media)) for path in media.rglob("*") if path.is_file())


def dicom_slice(pixels: NDArray[np.uint8], patient: str) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = pydicom.Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Modality, file.PatientID, file.PatientName = "CT", patient, "Doe^Jane"
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.RescaleSlope, file.RescaleIntercept = 1, -1000
    file.PixelData = pixels.astype("<u2").tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_a_good_zip_becomes_ready_with_everything_known(user: Any, own_media: Path) -> None:
    dataset = ingest(user, pairs(12))
    assert (dataset.status, dataset.error, dataset.issues) == ("ready", None, [])
    assert (dataset.file_count, dataset.dimensions, dataset.channels, dataset.modality) == (12, 2, 1, "greyscale")
    assert [(item.value, item.name) for item in dataset.classes.all()] == [
        (0, "background"),
        (100, "class 100"),
        (200, "class 200"),
    ]
    samples = list(dataset.samples.all())
    assert {sample.split for sample in samples} == {"train", "val"}  # too few for a test part of their own
    assert samples[0].shape == [160, 160]
    stored = np.asarray(PILImage.open(default_storage.open(samples[3].mask_key)))
    assert np.array_equal(stored, picture(3)[1] * 100)
    assert sum(item["share"] for item in dataset.fingerprint["classes"]) == pytest.approx(1)
    manifest = f"datasets/{dataset.uuid}/manifest.json"
    assert len(objects(own_media)) == 12 * 2 + 4  # and the thumbnails, the archive, the manifest and its samples
    assert manifest in objects(own_media)


def test_channels_of_tiff_are_used_and_have_to_agree(user: Any, own_media: Path) -> None:
    def tiff(array: NDArray[Any], **options: Any) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array, photometric="minisblack", **options)
        return buffer.getvalue()

    files: dict[str, bytes] = {}
    for index in range(5):
        image, labels = picture(index)
        pages = np.stack([np.full_like(image, 9), image])
        content = tiff(pages, imagej=True, metadata={"axes": "CYX"})
        if index == 3:
            content = tiff(np.stack([image] * 4), planarconfig="separate")
        if index == 4:
            content = tiff(np.stack([image] * 4), imagej=True, metadata={"axes": "TYX"})
        files |= {f"images/c{index}.tif": content, f"masks/c{index}.png": png(labels * 100)}
    dataset = ingest(user, files)
    assert (dataset.status, dataset.file_count, dataset.channels) == ("ready", 3, 2), dataset.error
    assert dataset.modality == "multichannel"
    found = {issue["code"]: issue["file"] for issue in dataset.issues}
    assert found == {"mixed_channels": "images/c3.tif and masks/c3.png", "time_series": "images/c4.tif"}
    assert dataset.fingerprint["intensity"]["maximum"] > 100  # that of the second channel


@pytest.mark.slow
def test_sparse_masks_that_a_zip_shrinks_to_a_thousandth_are_read(user: Any, own_media: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(2):
            volume = np.random.default_rng(index).integers(0, 9, (240, 240, 100)).astype(np.uint8)
            labels = np.zeros((240, 240, 100), np.int16)
            labels[100:110, 90:99, 40 + index] = 1
            for folder, array in (("images", volume), ("masks", labels)):
                archive.writestr(f"{folder}/c{index}.nii", nib.Nifti1Image(array, np.eye(4)).to_bytes())
        ratio = max(item.file_size / item.compress_size for item in archive.infolist())
    assert ratio > 500
    dataset = create_dataset_from_upload(
        user=user, name="set", archive=SimpleUploadedFile("set.zip", buffer.getvalue())
    )
    check(dataset.pk)
    dataset.refresh_from_db()
    assert (dataset.status, dataset.file_count) == ("ready", 2), dataset.error


def test_copies_of_one_picture_are_named_and_stay_on_one_side(user: Any) -> None:
    files = pairs(12)
    image, labels = picture(4)
    turned, brighter = np.rot90(image), (image * 0.8 + 40).astype(np.uint8)
    files |= {"images/turned.png": png(turned), "masks/turned.png": png(np.rot90(labels) * 100)}
    files |= {"images/brighter.png": png(brighter), "masks/brighter.png": png(labels * 100)}
    files |= {"images/same.png": png(image), "masks/same.png": png(labels * 100)}
    dataset = ingest(user, files)
    assert dataset.status == "ready", dataset.error
    found = [issue for issue in dataset.issues if issue["code"] == "near_duplicate"]
    assert len(found) == 2
    told = " ".join(issue["detail"] for issue in found)
    assert all(name in told for name in ("brighter", "turned", "look like one picture"))
    assert [issue["code"] for issue in dataset.issues].count("duplicate_image") == 1
    sides = {sample.split for sample in dataset.samples.filter(name__in=["c4", "turned", "brighter", "same"])}
    assert len(sides) == 1
    assert dataset.fingerprint["grouping"].endswith("near-duplicates together")


def test_a_broken_file_costs_its_pair_only_and_is_named(user: Any, own_media: Path) -> None:
    files = pairs(4)
    files["images/c1.png"] = files["images/c1.png"][:200]
    image, labels = picture(2)
    files["masks/c2.png"] = png(labels[:80])
    del files["masks/c3.png"]
    files |= {f"images/d{index}.png": data for index, data in enumerate([png(image), png(picture(9)[0])])}
    files |= {f"masks/d{index}.png": png(picture(index)[1] * 100) for index in range(2)}
    dataset = ingest(user, files)
    assert dataset.status == "ready"
    assert dataset.file_count == 3
    found = {issue["file"]: issue["detail"] for issue in dataset.issues}
    assert "images/c1.png" in found
    shapes = found["images/c2.png and masks/c2.png"]
    assert "160" in shapes
    assert "80" in shapes
    assert "images/c3.png" in found
    assert len(objects(own_media)) == 3 * 2 + 4


def test_too_little_good_data_is_one_sentence_and_leaves_nothing(user: Any, own_media: Path) -> None:
    dataset = ingest(user, pairs(1))
    assert dataset.status == "error"
    assert dataset.error
    assert "2 pairs are needed" in dataset.error
    assert dataset.s3_key == ""
    assert objects(own_media) == []
    assert not dataset.samples.exists()


def test_a_url_is_checked_again_only_when_the_objects_of_its_refusal_are_gone(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second check stores its download under the same key, so nothing may be deleted any more once it can begin."""
    dataset = create_dataset_from_upload(user=user, name="set", archive=zipped(pairs(1)))
    Dataset.objects.filter(pk=dataset.pk).update(
        source_url="https://example.org/set.zip"
    )  # fetched by an earlier attempt
    seen: list[tuple[str, bool, str]] = []
    for name in ("delete_object", "delete_prefix"):
        real = getattr(storage, name)

        def looked_at(key: str, real: Any = real) -> None:
            row = Dataset.objects.get(pk=dataset.pk)
            seen.append((key.rpartition("/")[2], row.is_working, row.s3_key))
            real(key)

        monkeypatch.setattr(storage, name, looked_at)
    check(dataset.pk)
    dataset.refresh_from_db()
    assert (dataset.status, dataset.s3_key) == ("error", "")
    assert ("archive.zip", True, "") in seen, "a row never names an archive that is gone"
    assert all(is_working for _, is_working, _ in seen), seen
    assert objects(own_media) == []


def test_a_refusal_that_is_killed_half_way_can_be_done_again(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = create_dataset_from_upload(user=user, name="set", archive=zipped(pairs(1)))

    def killed(*arguments: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("datasets.check.storage.delete_object", killed)
        with pytest.raises(SystemExit):
            check(dataset.pk)
    past = timezone.now() - timedelta(seconds=reaper.STALE_SECONDS + 5)
    Dataset.objects.filter(pk=dataset.pk).update(heartbeat_at=past)
    reaper.reap(Dataset)
    check(dataset.pk)
    dataset.refresh_from_db()
    assert "Only one image" in str(dataset.error), "the archive was there to be read again"
    assert objects(own_media) == []


def test_masks_of_one_value_teach_nothing(user: Any, own_media: Path) -> None:
    dataset = ingest(user, pairs(3, lambda labels: png(labels * 0)))
    assert dataset.status == "error"
    assert "one value" in str(dataset.error)
    assert objects(own_media) == []


def test_colour_coded_masks_become_numbers_with_their_colours(user: Any) -> None:
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    dataset = ingest(user, pairs(3, lambda labels: png(table[labels])))
    assert dataset.status == "ready"
    assert {item.value for item in dataset.classes.all()} == {0, 1, 2}
    assert {item.color for item in dataset.classes.all()} == {"#000000", "#ff0000", "#0000ff"}


def test_photographs_as_masks_are_refused_with_the_cure(user: Any) -> None:
    dataset = ingest(user, pairs(3, lambda labels: png(picture(1)[0])))
    assert dataset.status == "error"
    assert "one number per class" in str(dataset.error)


def test_the_patient_stays_behind_but_keeps_the_split_honest(user: Any, own_media: Path) -> None:
    files: dict[str, bytes] = {}
    for index in range(12):
        image, labels = picture(index)
        files |= {f"images/c{index}.dcm": dicom_slice(image, f"PATIENT{index % 3}"), f"masks/c{index}.png": png(labels)}
    dataset = ingest(user, files)
    assert dataset.status == "ready", dataset.error
    assert dataset.modality == "CT"
    groups: dict[str, set[str]] = {}
    for sample in dataset.samples.all():
        groups.setdefault(sample.patient_group, set()).add(sample.split)
    assert len(groups) == 3
    assert all(len(sides) == 1 for sides in groups.values())
    written = (own_media / f"datasets/{dataset.uuid}/manifest.json").read_text() + str(dataset.__dict__)
    written += gzip.decompress((own_media / f"datasets/{dataset.uuid}/samples.jsonl.gz").read_bytes()).decode()
    assert "c11" in written
    assert "PATIENT" not in written
    assert "Doe" not in written


def test_names_that_tell_patients_keep_the_split_honest_and_are_told(user: Any) -> None:
    files: dict[str, bytes] = {}
    for index in range(24):
        image, labels = picture(index)
        name = f"ward{index // 4}/slice_{index % 4}"
        files |= {f"images/{name}.png": png(image), f"masks/{name}.png": png(labels)}
    dataset = ingest(user, files)
    assert dataset.status == "ready", dataset.error
    sides: dict[str, set[str]] = {}
    for sample in dataset.samples.all():
        sides.setdefault(sample.patient_group, set()).add(sample.split)
    assert set(sides) == {f"name ward{number}" for number in range(6)}
    assert all(len(found) == 1 for found in sides.values())
    [told] = [issue for issue in dataset.issues if issue["code"] == "grouped_by_name"]
    assert "6 patients, such as ward0 with 4 images" in told["detail"]


def test_a_second_worker_that_gets_the_message_does_nothing(user: Any) -> None:
    dataset = ingest(user, pairs(2))
    before = dataset.finished_at
    check(dataset.pk)
    dataset.refresh_from_db()
    assert (dataset.finished_at, dataset.attempt) == (before, 1)


def test_a_dataset_deleted_while_it_is_checked_leaves_nothing(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = create_dataset_from_upload(user=user, name="set", archive=zipped(pairs(3)))
    from datasets import versions

    real = split_cases

    def delete_then_split(*arguments: Any, **more: Any) -> Any:
        Dataset.objects.filter(pk=dataset.pk).delete()
        return real(*arguments, **more)

    monkeypatch.setattr(versions, "split_cases", delete_then_split)
    check(dataset.pk)
    assert objects(own_media) == []


def test_an_unexpected_failure_is_told_and_keeps_the_archive(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("datasets.pipeline.store_sample", broken)
    dataset = ingest(user, pairs(2))
    assert dataset.status == "error"
    assert "Check it again" in str(dataset.error)
    assert objects(own_media) == [f"datasets/{dataset.uuid}/archive.zip"]
