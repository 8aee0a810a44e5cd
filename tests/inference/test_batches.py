"""What a ZIP of images becomes: one inference per picture, volume and DICOM series, each under its own path."""

from __future__ import annotations

import errno
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from pydicom.uid import UID
from rest_framework.test import APIClient

from inference import batches, prediction
from inference.models import InferenceBatch, InferenceResult
from medseg_site.demo import draw_cells, png
from medseg_site.shared.storage import objects as storage
from ml_core.io import read_image
from models_app.models import SegmentationModel
from tests.synthetic import draw_volume, write_dicom_multiframe, write_dicom_series, write_dicom_slice

pytestmark = pytest.mark.django_db

VOLUME, _ = draw_volume(np.random.default_rng(3), (5, 32, 40))
PICTURE = png(draw_cells(np.random.default_rng(9))[0][:40, :40])


@pytest.fixture
def of_volumes(model: SegmentationModel) -> SegmentationModel:
    SegmentationModel.objects.filter(pk=model.pk).update(plan={"dimensions": 3})
    model.refresh_from_db()
    return model


def sent(api: APIClient, model: SegmentationModel, archive: bytes) -> InferenceBatch:
    upload = SimpleUploadedFile("many.zip", archive)
    answer = api.post("/api/v1/inference-batches/", {"model": model.pk, "archive": upload}, format="multipart")
    assert answer.status_code == 202, answer.content
    batches.expand(answer.json()["id"])
    return InferenceBatch.objects.get(pk=answer.json()["id"])


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def contents(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def series(at: Path, seed: int = 3, **tags: Any) -> dict[str, bytes]:
    """The slices of one series, without endings, by their names."""
    volume, _ = draw_volume(np.random.default_rng(seed), VOLUME.shape)
    return contents(write_dicom_series(at / f"series{seed}{len(tags)}", volume, **tags))


def under(prefix: str, files: dict[str, bytes], suffix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{name}{suffix}": content for name, content in files.items()}


def names(batch: InferenceBatch) -> list[str]:
    return sorted(batch.inferences.values_list("image_name", flat=True))


def issues(batch: InferenceBatch) -> list[tuple[str, str, str]]:
    return [(row["severity"], row["code"], row["file"]) for row in batch.issues]


def predicted(batch: InferenceBatch) -> list[InferenceResult]:
    for pk in batch.inferences.values_list("pk", flat=True):
        prediction.predict(pk)
    batch.refresh_from_db()
    return list(batch.inferences.order_by("image_name"))


def body(answer: Any) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


def download(api: APIClient, batch: InferenceBatch) -> tuple[list[str], dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(body(api.get(f"/api/v1/inference-batches/{batch.pk}/download/")))) as archive:
        return sorted(archive.namelist()), json.loads(archive.read("summary.json"))


# DICOM.


@pytest.mark.parametrize("suffix", ["", ".dcm", ".bin"])
def test_each_series_is_one_volume(api: APIClient, of_volumes: SegmentationModel, tmp_path: Path, suffix: str) -> None:
    one, two = series(tmp_path, 3), series(tmp_path, 4)
    batch = sent(api, of_volumes, zip_of({**under("patient.0/", one, suffix), **under("b/patient1/", two, suffix)}))
    assert (names(batch), batch.issues) == (["b/patient1", "patient.0"], [])
    rows = predicted(batch)
    assert [row.status for row in rows] == ["completed", "completed"], [row.error for row in rows]
    assert [row.shape for row in rows] == [list(VOLUME.shape)] * 2
    files, summary = download(api, batch)
    assert files == sorted(
        [
            *("masks/patient.0.nii.gz", "masks/b/patient1.nii.gz", "summary.json"),
            *("certainty/patient.0.nii.gz", "certainty/b/patient1.nii.gz"),
        ]
    )
    assert {entry["image"] for entry in summary["images"]} == {"patient.0", "b/patient1"}
    stored = read_image(storage.fetch(rows[1].input_image_s3_key))
    assert np.array_equal(stored.array[0], VOLUME[:, ::-1, ::-1])


def test_a_model_of_pictures_takes_each_slice_and_says_so(
    api: APIClient, model: SegmentationModel, tmp_path: Path
) -> None:
    batch = sent(api, model, zip_of(under("p0/", series(tmp_path))))
    assert names(batch) == sorted(f"p0/{name}" for name in series(tmp_path))
    assert issues(batch) == [("warning", "slices_alone", "p0/")]
    assert "each of the 5 DICOM files" in batch.issues[0]["detail"]
    assert {tuple(row.shape) for row in predicted(batch)} == {(32, 40)}


def test_two_series_of_one_folder_become_two_volumes(
    api: APIClient, of_volumes: SegmentationModel, tmp_path: Path
) -> None:
    one, two = series(tmp_path, 3), series(tmp_path, 4, SeriesInstanceUID=UID("1.2.3"))
    batch = sent(api, of_volumes, zip_of({**under("a ", one), **under("b ", two)}))
    assert names(batch) == ["a IM000_1", "b IM000_1"]
    assert issues(batch) == [("warning", "several_series", "top of the ZIP")]
    assert [row.shape for row in predicted(batch)] == [list(VOLUME.shape)] * 2


def test_scouts_stay_out_and_files_of_many_frames_and_pictures_stand_alone(
    api: APIClient, of_volumes: SegmentationModel, tmp_path: Path
) -> None:
    kind = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": UID("1.2.3")}
    scout = write_dicom_slice(tmp_path / "scout", VOLUME[0], **kind).read_bytes()
    cine = write_dicom_multiframe(tmp_path / "cine", VOLUME, SeriesInstanceUID=UID("1.2.4")).read_bytes()
    files = {**under("p/", series(tmp_path)), "p/scout": scout, "q/cine": cine, "q/photo": PICTURE, "q/x": b"text"}
    batch = sent(api, of_volumes, zip_of({**files, "DICOMDIR": scout}))
    assert names(batch) == ["p", "q/cine", "q/photo"]
    assert sorted(issues(batch)) == [
        ("error", "localizer", "p/scout"),
        ("error", "unsupported_type", "DICOMDIR"),
        ("error", "unsupported_type", "q/x"),
    ]
    rows = predicted(batch)
    assert [row.status for row in rows] == ["completed"] * 3, [row.error for row in rows]
    assert [len(row.shape) for row in rows] == [3, 3, 2]
    alone = sent(api, of_volumes, zip_of({"p/scout": scout}))
    assert (names(alone), alone.issues) == (["p/scout"], [])


def test_a_scout_of_the_same_series_is_named_in_the_result(
    api: APIClient, of_volumes: SegmentationModel, tmp_path: Path
) -> None:
    scout = write_dicom_slice(tmp_path / "scout", VOLUME[0], ImageType=["DERIVED", "PRIMARY", "LOCALIZER"])
    upload = SimpleUploadedFile("one.zip", zip_of({**under("p/", series(tmp_path)), "p/scout": scout.read_bytes()}))
    pk = api.post("/api/v1/inferences/", {"model": of_volumes.pk, "image": upload}, format="multipart").json()["id"]
    prediction.predict(pk)
    row = InferenceResult.objects.get(pk=pk)
    assert (row.status, row.error) == ("completed", None)
    assert "p/scout was left out" in row.warnings[0]


def test_a_series_that_cannot_be_one_volume_says_why_by_the_user_s_names(
    api: APIClient, of_volumes: SegmentationModel, tmp_path: Path
) -> None:
    files = {**under("p/a", series(tmp_path, 3, EchoTime=5)), **under("p/b", series(tmp_path, 4, EchoTime=9))}
    [row] = predicted(sent(api, of_volumes, zip_of(files)))
    assert row.status == "failed"
    assert str(row.error).startswith("p: The series holds 2 volumes at the same positions, which differ in their echo")
    assert "5 files such as aIM000_1" in str(row.error)


# ZIPs in the ZIP.


def test_a_zip_of_one_series_in_the_zip_is_one_volume(
    api: APIClient, of_volumes: SegmentationModel, tmp_path: Path
) -> None:
    inner = {f"p{seed}.zip": zip_of(under("x/", series(tmp_path, seed))) for seed in (3, 4)}
    inner["p4.zip"] = zip_of({**under("x/", series(tmp_path, 4)), "x/preview.png": PICTURE})
    batch = sent(api, of_volumes, zip_of(inner))
    assert (names(batch), batch.issues) == (["p3.zip", "p4.zip"], [])
    rows = predicted(batch)
    assert [row.shape for row in rows] == [list(VOLUME.shape)] * 2
    assert "x/preview.png was left out" in rows[1].warnings[0]
    assert "masks/p3.nii.gz" in download(api, batch)[0]


def test_other_zips_in_the_zip_say_how_to_send_several_series(
    api: APIClient, of_volumes: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = series(tmp_path, 3), series(tmp_path, 4, SeriesInstanceUID=UID("1.2.3"))
    several = zip_of({**under("a/", one), **under("b/", two)})
    inner = {
        "several.zip": several,
        "pictures.zip": zip_of({"a.png": PICTURE}),
        "nested.zip": zip_of({"a.zip": several}),
        "broken.zip": b"PK\x03\x04 nothing",
        "bomb.zip": zip_of({"a.dcm": bytes(300 * 2**20)}),
    }
    batch = sent(api, of_volumes, zip_of({**inner, "fine.png": PICTURE}))
    assert names(batch) == ["fine.png"]
    assert sorted(issues(batch)) == [
        ("error", "damaged_zip", "broken.zip"),
        ("error", "nested_archive", "nested.zip"),
        ("error", "nested_archive", "pictures.zip"),
        ("error", "nested_archive", "several.zip"),
        ("error", "ratio", "bomb.zip"),
    ]
    said = {row["file"]: row["detail"] for row in batch.issues}
    assert said["several.zip"] == (
        "This ZIP in the ZIP holds 2 images, and only one DICOM series is read from it. Put the files of each series "
        "into a folder of its own, and zip the folders."
    )
    refused = sent(api, of_volumes, zip_of({"several.zip": several}))
    assert refused.status == "failed"
    assert "several.zip: This ZIP in the ZIP holds 2 images" in str(refused.error)
    monkeypatch.setattr(batches, "MAX_INNER_FILES", 6)
    refused = sent(api, of_volumes, zip_of({"several.zip": several, "fine.png": PICTURE}))
    assert "more than 6 files" in str(refused.error)


# Names.


def test_results_keep_folder_and_whole_name(api: APIClient, model: SegmentationModel) -> None:
    paths = [
        *("day.1/scan.01.png", "day.1/scan.02.png", "day.2/scan.01.png", "day.2/1.2.840.113619.png"),
        *("a b/é ü 中.png", "archive.tar.old.png", "same.png", "same.bmp.png", "Same.PNG"),
    ]
    batch = sent(api, model, zip_of(dict.fromkeys(paths, PICTURE)))
    assert (names(batch), batch.issues) == (sorted(paths), [])
    rows = {row.image_name: row for row in predicted(batch)}
    files, summary = download(api, batch)
    assert {entry["image"] for entry in summary["images"]} == set(paths)
    masks = {entry["image"]: entry["mask"] for entry in summary["images"]}
    assert masks["day.1/scan.01.png"] == "masks/day.1/scan.01.png"
    assert masks["day.2/scan.01.png"] == "masks/day.2/scan.01.png"
    assert masks["day.2/1.2.840.113619.png"] == "masks/day.2/1.2.840.113619.png"
    assert masks["a b/é ü 中.png"] == "masks/a b/é ü 中.png"
    assert masks["archive.tar.old.png"] == "masks/archive.tar.old.png"
    assert len({mask.casefold() for mask in masks.values()}) == len(paths)
    certainties = [mask.replace("masks/", "certainty/") for mask in masks.values()]
    assert files == sorted([*masks.values(), *certainties, "summary.json"])
    answer = api.get(f"/api/v1/inferences/{rows['day.1/scan.01.png'].pk}/mask/")
    assert answer["Content-Disposition"].endswith('filename="day.1_scan.01_labels.png"')
    answer = api.get(f"/api/v1/inferences/{rows['a b/é ü 中.png'].pk}/certainty/")
    assert answer["Content-Disposition"].endswith("filename*=utf-8''a%20b_%C3%A9%20%C3%BC%20%E4%B8%AD_certainty.png")


def test_files_of_one_name_and_several_formats_keep_their_own_masks(api: APIClient, model: SegmentationModel) -> None:
    batch = sent(api, model, zip_of(dict.fromkeys(("p/scan.bmp", "p/scan.png", "p/scan"), PICTURE)))
    predicted(batch)
    masks = {entry["image"]: entry["mask"] for entry in download(api, batch)[1]["images"]}
    assert masks == {
        "p/scan": "masks/p/scan.png",
        "p/scan.bmp": "masks/p/scan.bmp.png",
        "p/scan.png": "masks/p/scan.png.png",
    }


def test_single_results_keep_the_whole_name(api: APIClient, model: SegmentationModel) -> None:
    for name, expected in (
        ("1.2.840.113619.2.5.png", 'filename="1.2.840.113619.2.5_labels.png"'),
        ("1.2.840.113619.2.5", 'filename="1.2.840.113619.2.5_labels.png"'),
        ("größe.01.png", "filename*=utf-8''gr%C3%B6%C3%9Fe.01_labels.png"),
    ):
        upload = SimpleUploadedFile(name, PICTURE)
        pk = api.post("/api/v1/inferences/", {"model": model.pk, "image": upload}, format="multipart").json()["id"]
        prediction.predict(pk)
        row = InferenceResult.objects.get(pk=pk)
        assert (row.image_name, row.status, row.error) == (name, "completed", None)
        assert api.get(f"/api/v1/inferences/{pk}/mask/")["Content-Disposition"].endswith(expected)


@pytest.mark.parametrize(
    ("name", "suffix", "warned"),
    [("scan.dat", ".png", False), ("scan", ".png", False), ("scan.dcm", ".dcm", True), ("a.nii.gz", ".nii.gz", True)],
)
def test_content_decides_at_single_inferences_too(
    api: APIClient, model: SegmentationModel, name: str, suffix: str, warned: bool
) -> None:
    files = {"image": SimpleUploadedFile(name, PICTURE), "mask": SimpleUploadedFile("m.nii", PICTURE)}
    pk = api.post("/api/v1/inferences/", {"model": model.pk, "image": files["image"]}, format="multipart").json()["id"]
    prediction.predict(pk)
    row = InferenceResult.objects.get(pk=pk)
    assert (row.status, row.error) == ("completed", None)
    assert row.input_image_s3_key.endswith(f"/input{suffix}")
    assert any("The name says" in text for text in row.warnings) == warned


def test_a_reference_under_a_wrong_name_is_read_and_said(api: APIClient, model: SegmentationModel) -> None:
    image, labels = draw_cells(np.random.default_rng(6))
    truth = SimpleUploadedFile("truth.nii", png((labels > 0).astype(np.uint8) * 255))
    sent_files = {"model": model.pk, "image": SimpleUploadedFile("a.png", png(image)), "mask": truth}
    pk = api.post("/api/v1/inferences/", sent_files, format="multipart").json()["id"]
    prediction.predict(pk)
    row = InferenceResult.objects.get(pk=pk)
    assert (row.status, row.error) == ("completed", None)
    assert row.metrics
    assert any(text.startswith("truth.nii: The name says a NIfTI file") for text in row.warnings)


def test_a_second_attempt_makes_the_same_images(
    api: APIClient, of_volumes: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = SimpleUploadedFile("many.zip", zip_of({**under("p/", series(tmp_path)), "q/a.png": PICTURE}))
    answer = api.post("/api/v1/inference-batches/", {"model": of_volumes.pk, "archive": upload}, format="multipart")
    pk, store = answer.json()["id"], storage.store_file
    left: list[str] = []

    def failing(key: str, path: Path, **more: Any) -> Any:
        left.append(key)
        if len(left) == 2:
            raise OSError(errno.ENOSPC, "full")
        return store(key, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "store_file", failing)
        batches.expand(pk)
    InferenceBatch.objects.filter(pk=pk).update(due_at=InferenceBatch.objects.get(pk=pk).created_at)
    batches.expand(pk)
    batch = InferenceBatch.objects.get(pk=pk)
    assert names(batch) == ["p", "q/a.png"]
    keys = set(batch.inferences.values_list("input_image_s3_key", flat=True))
    assert keys == set(left)


def test_a_long_path_keeps_its_end(api: APIClient, model: SegmentationModel) -> None:
    path = "/".join(["folder" * 10] * 10) + "/scan.png"
    [row] = predicted(sent(api, model, zip_of({path: PICTURE})))
    assert len(row.image_name) == 300
    assert row.image_name.endswith("/scan.png")
    assert row.status == "completed"
