"""Label maps on the image's own grid in the dataset's own values, from a model package made here (untrained: shapes matter)."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image as PILImage
from rest_framework.test import APIClient

from inference import batches, prediction
from inference.models import InferenceBatch, InferenceResult
from medseg_site.demo import draw_cells, png
from medseg_site.shared.storage import objects as storage
from ml_core.io import write_label_map
from ml_core.prediction.predictor import Predictor
from models_app.models import SegmentationModel
from tests.factories import CompletedModelFactory

pytestmark = pytest.mark.django_db


def send(api: APIClient, model: SegmentationModel, name: str, data: bytes, **more: Any) -> InferenceResult:
    files = {"image": SimpleUploadedFile(name, data), **more}
    answer = api.post("/api/v1/inferences/", {"model": model.pk, **files}, format="multipart")
    assert answer.status_code == 202, answer.content
    assert answer["Location"].endswith(f"/api/v1/inferences/{answer.json()['id']}/")
    prediction.predict(answer.json()["id"])
    return InferenceResult.objects.get(pk=answer.json()["id"])


def body(answer: Any) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


def test_a_picture_gets_a_png_in_the_dataset_s_values(api: APIClient, model: SegmentationModel) -> None:
    image = draw_cells(np.random.default_rng(5))[0]
    row = send(api, model, "new.01.png", png(image[:100]))
    assert (row.status, row.error) == ("completed", None)
    shown = api.get(f"/api/v1/inferences/{row.pk}/").json()
    assert api.get(shown["mask_url"])["Content-Disposition"].endswith('"new.01_labels.png"')
    mask = np.asarray(PILImage.open(io.BytesIO(body(api.get(shown["mask_url"])))))
    assert mask.shape == (100, 160)
    assert set(np.unique(mask)) <= {0, 255}
    assert [item["pixels"] for item in shown["classes"]] == [int((mask == value).sum()) for value in (0, 255)]
    assert sum(item["fraction"] for item in shown["classes"]) == pytest.approx(1)
    certainty = np.asarray(PILImage.open(io.BytesIO(body(api.get(shown["certainty_url"])))))
    assert certainty.shape == mask.shape
    found = mask == 255
    assert shown["confidence"] == row.confidence
    assert row.confidence == pytest.approx(certainty[found if found.any() else ...].mean() / 255, abs=0.003)
    on_screen = np.asarray(PILImage.open(io.BytesIO(body(api.get(shown["certainty_url"] + "?slice=0")))))
    assert np.array_equal(on_screen, certainty)
    assert api.get(shown["certainty_url"] + "?slice=1").status_code == 400
    overlay = np.asarray(PILImage.open(io.BytesIO(body(api.get(shown["overlay_url"] + "?opacity=1")))))
    expected = np.where((mask == 255)[..., None], [255, 0, 0], image[:100, :, None])
    assert np.array_equal(overlay, expected)
    assert api.get(shown["overlay_url"] + "?opacity=2").status_code == 400
    assert api.get(shown["image_url"] + "?slice=1").status_code == 400


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR"])
def test_a_volume_gets_a_nifti_on_its_own_grid(
    api: APIClient, model: SegmentationModel, tmp_path: Path, codes: str
) -> None:
    rng = np.random.default_rng(1)
    start, end = (nib.orientations.axcodes2ornt(tuple(word)) for word in ("RAS", codes))
    turned = nib.Nifti1Image(rng.normal(100, 20, (20, 24, 5)).astype(np.float32), np.diag([0.7, 0.7, 3.0, 1.0]))
    turned = turned.as_reoriented(nib.orientations.ornt_transform(start, end))
    nib.save(turned, tmp_path / "volume.nii.gz")
    row = send(api, model, "volume.nii.gz", (tmp_path / "volume.nii.gz").read_bytes())
    assert row.status == "completed", row.error
    (tmp_path / "labels.nii.gz").write_bytes(body(api.get(f"/api/v1/inferences/{row.pk}/mask/")))
    labels = nib.Nifti1Image.from_filename(tmp_path / "labels.nii.gz")
    assert labels.shape == turned.shape
    assert np.allclose(labels.affine, turned.affine)
    assert set(np.unique(np.asarray(labels.dataobj))) <= {0, 255}
    (tmp_path / "certainty.nii.gz").write_bytes(body(api.get(f"/api/v1/inferences/{row.pk}/certainty/")))
    certainty = nib.Nifti1Image.from_filename(tmp_path / "certainty.nii.gz")
    assert certainty.shape == turned.shape
    assert np.allclose(certainty.affine, turned.affine)
    found = np.asarray(labels.dataobj) == 255
    mean = np.asarray(certainty.dataobj)[found if found.any() else ...].mean() / 255
    assert row.confidence == pytest.approx(mean, abs=0.003)
    volume = sum(item["volume_ml"] for item in row.classes)
    assert volume == pytest.approx(20 * 24 * 5 * 0.7 * 0.7 * 3 / 1000, rel=1e-3)
    assert any("volume" in text for text in row.warnings)
    for picture in ("image", "labels", "overlay", "certainty"):
        shown = PILImage.open(io.BytesIO(body(api.get(f"/api/v1/inferences/{row.pk}/{picture}/?slice=4"))))
        assert shown.size == (20, 24)


def test_a_volume_in_micrometres_is_measured_in_mm_and_written_in_micrometres(
    api: APIClient, model: SegmentationModel, tmp_path: Path
) -> None:
    """Its header has two transforms, too. The reference was saved by a program that knows the qform only."""
    sform, qform = np.diag([5.0, 5.0, 10.0, 1.0]), np.diag([-5.0, -5.0, 10.0, 1.0])
    sform[:3, 3], qform[:3, 3] = -60, 40
    volume = nib.Nifti1Image(np.random.default_rng(1).normal(100, 20, (20, 24, 5)).astype(np.float32), None)
    reference = nib.Nifti1Image((np.asarray(volume.dataobj) > 110).astype(np.uint8) * 255, None)
    for picture, transform in ((volume, sform), (reference, qform)):
        picture.set_sform(transform, 1)
        picture.set_qform(qform, 1)
        picture.header.set_xyzt_units("micron")
    nib.save(volume, tmp_path / "v.nii.gz")
    nib.save(reference, tmp_path / "r.nii.gz")
    truth = SimpleUploadedFile("r.nii.gz", (tmp_path / "r.nii.gz").read_bytes())
    row = send(api, model, "v.nii.gz", (tmp_path / "v.nii.gz").read_bytes(), mask=truth)
    assert row.status == "completed", row.error
    assert row.spacing == pytest.approx([0.01, 0.005, 0.005])
    assert sum(item["volume_ml"] for item in row.classes) == pytest.approx(20 * 24 * 5 * 2.5e-10, rel=1e-4)
    assert row.metrics
    assert row.metrics["hd95"] < 1
    (tmp_path / "labels.nii.gz").write_bytes(body(api.get(f"/api/v1/inferences/{row.pk}/mask/")))
    labels = nib.Nifti1Image.from_filename(tmp_path / "labels.nii.gz")
    assert labels.header.get_xyzt_units()[0] == "micron"
    assert np.array_equal(labels.get_sform(), volume.get_sform())
    assert np.array_equal(labels.get_qform(), volume.get_qform())
    shown = api.get(f"/inferences/{row.pk}/").content.decode()
    assert "0.005" in shown
    assert "0.00 ml" not in shown


def test_an_image_of_other_channels_fails_with_their_numbers(
    api: APIClient, model: SegmentationModel, tmp_path: Path
) -> None:
    grey = draw_cells(np.random.default_rng(5))[0]
    tifffile.imwrite(tmp_path / "two.tif", np.stack([grey, grey]), imagej=True, metadata={"axes": "CYX"})
    row = send(api, model, "two.tif", (tmp_path / "two.tif").read_bytes())
    assert row.status == "failed"
    assert "two.tif: The image has 2 channels, and the model was trained on 1." in str(row.error)
    PILImage.fromarray(np.dstack([grey] * 3 + [grey.T])).save(tmp_path / "alpha.png")
    row = send(api, model, "alpha.png", (tmp_path / "alpha.png").read_bytes())
    assert row.status == "completed"
    assert any("alpha channel (transparency) that varies" in text for text in row.warnings)


def test_a_reference_gives_scores_and_one_that_does_not_fit_says_so(api: APIClient, model: SegmentationModel) -> None:
    image, labels = draw_cells(np.random.default_rng(6))
    reference = png((labels > 0).astype(np.uint8) * 255)
    scored = send(api, model, "new.png", png(image), mask=SimpleUploadedFile("truth.png", reference))
    assert scored.metrics
    assert 0 <= scored.metrics["dice"] <= 1
    for mask, word in ((png(labels[:50]), "160"), (png(labels * 7), "no class"), (b"nonsense", "truth.png")):
        row = send(api, model, "new.png", png(image), mask=SimpleUploadedFile("truth.png", mask))
        assert row.status == "failed"
        assert word in str(row.error)


def test_the_second_request_finds_the_model_warm(
    api: APIClient, model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = png(draw_cells(np.random.default_rng(7))[0])
    loads: list[Path] = []
    real = Predictor.load

    def counted(path: Path) -> Predictor:
        loads.append(path)
        return real(path)

    monkeypatch.setattr(Predictor, "load", counted)
    for _ in range(2):
        assert send(api, model, "new.png", image).status == "completed"
    assert len(loads) == 1


def test_an_unreadable_image_fails_with_its_name(api: APIClient, model: SegmentationModel) -> None:
    row = send(api, model, "holiday.png", b"not an image at all")
    assert row.status == "failed"
    assert "holiday.png" in str(row.error)
    assert api.get(f"/api/v1/inferences/{row.pk}/mask/").status_code == 409


def test_a_row_deleted_while_it_runs_leaves_nothing(
    api: APIClient, model: SegmentationModel, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = write_label_map

    def delete_first(*arguments: Any) -> Path:
        InferenceResult.objects.all().delete()
        return real(*arguments)

    monkeypatch.setattr(prediction, "write_label_map", delete_first)
    image = SimpleUploadedFile("new.png", png(draw_cells(np.random.default_rng(8))[0]))
    pk = api.post("/api/v1/inferences/", {"model": model.pk, "image": image}, format="multipart").json()["id"]
    prediction.predict(pk)
    assert not list((own_media / "inferences").rglob("*.png"))


def test_a_batch_of_images_becomes_a_zip_of_masks(api: APIClient, model: SegmentationModel) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for folder in ("a", "b"):
            archive.writestr(f"{folder}/cells.png", png(draw_cells(np.random.default_rng(9))[0]))
        archive.writestr("broken.png", b"nothing")
        archive.writestr("notes.doc", b"text")
    upload = SimpleUploadedFile("many.zip", buffer.getvalue())
    answer = api.post("/api/v1/inference-batches/", {"model": model.pk, "archive": upload}, format="multipart")
    assert answer.status_code == 202
    pk = answer.json()["id"]
    assert api.get(f"/api/v1/inference-batches/{pk}/download/").status_code == 409
    assert batches.expand(pk)
    for inference in InferenceResult.objects.filter(batch=pk).values_list("pk", flat=True):
        prediction.predict(inference)
    shown = api.get(f"/api/v1/inference-batches/{pk}/").json()
    assert (shown["status"], shown["total"], shown["completed"], shown["failed"]) == ("completed", 3, 2, 1)
    assert shown["issues"][0]["file"] == "notes.doc"
    with zipfile.ZipFile(io.BytesIO(body(api.get(f"/api/v1/inference-batches/{pk}/download/")))) as archive:
        summary = json.loads(archive.read("summary.json"))
        masks = [entry["mask"] for entry in summary["images"] if entry["mask"]]
        assert len(set(masks)) == 2
        certainties = [name.replace("masks/", "certainty/") for name in masks]
        assert [entry["certainty"] for entry in summary["images"] if entry["mask"]] == certainties
        assert {*masks, *certainties, "summary.json"} == set(archive.namelist())
    listed = api.get(f"/api/v1/inferences/?batch={pk}&ordering=confidence").json()["results"]
    assert [row["confidence"] for row in listed if row["confidence"] is not None] == sorted(
        entry["confidence"] for entry in summary["images"] if entry["mask"]
    )


def test_a_batch_without_images_is_refused(api: APIClient, model: SegmentationModel) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    upload = SimpleUploadedFile("none.zip", buffer.getvalue())
    pk = api.post("/api/v1/inference-batches/", {"model": model.pk, "archive": upload}, format="multipart").json()["id"]
    assert batches.expand(pk) is False
    batch = InferenceBatch.objects.get(pk=pk)
    assert batch.status == "failed"
    assert "no image" in str(batch.error)


def test_a_model_without_weights_cannot_be_used(api: APIClient) -> None:
    model = CompletedModelFactory.create(status="failed", error="because", s3_key="")
    image = SimpleUploadedFile("new.png", png(draw_cells(np.random.default_rng(8))[0]))
    answer = api.post("/api/v1/inferences/", {"model": model.pk, "image": image}, format="multipart")
    assert answer.status_code == 409


def test_models_used_last_stay_warm_up_to_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return SimpleNamespace(nbytes=int(name))

    monkeypatch.setattr(storage, "fetch", lambda key, checksum: key)
    monkeypatch.setattr(Predictor, "load", load)
    warm = prediction._WarmModels(10)
    for size in (4, 5, 4, 3, 4, 5):  # 5 gave way to 3, since 4 was used after it
        warm.get(SegmentationModel(s3_key=str(size), checksum=str(size)))
    assert loaded == ["4", "5", "3", "5"]
    for _ in range(2):
        warm.get(SegmentationModel(s3_key="25", checksum="25"))
    assert loaded[4:] == ["25"], "one that is larger than the cache is kept alone"
