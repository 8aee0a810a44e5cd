"""Volumes and DICOM through the whole platform: geometry comes back, and patients are kept together and unnamed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as PILImage

from tests.e2e import drawings
from tests.platform import Platform

pytestmark = pytest.mark.e2e


def test_a_volumes_label_map_lies_on_the_volumes_own_grid(platform: Platform) -> None:
    dataset = platform.upload("Balls", drawings.nifti_dataset())
    assert dataset["status"] == "ready", dataset["error"]
    assert (dataset["file_count"], dataset["dimensions"]) == (3, 3)
    assert [item["value"] for item in dataset["classes"]] == [0, 2]
    model = platform.train("Balls", dataset, **{**drawings.QUICK, "patch_size": 32})
    assert model["status"] == "completed", model["error"]

    voxels, truth = drawings.ball(100)
    result = platform.infer(model, "unseen.nii.gz", drawings.nifti(voxels))
    assert result["status"] == "completed", result["error"]
    assert result["output_image_s3_key"].endswith(".nii.gz")
    labels, affine = drawings.read_nifti(platform.request("GET", result["mask_url"]).content)
    assert labels.shape == drawings.VOLUME_SHAPE
    assert np.allclose(affine, drawings.AFFINE, atol=1e-4)
    assert set(np.unique(labels)) == {0, 2}
    found = labels == 2
    # Off the middle as the ball is, a mirrored or turned label map would not lie on it.
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7
    assert result["classes"][1]["pixels"] == found.sum()
    assert result["classes"][1]["volume_ml"] == pytest.approx(found.sum() * 0.9 * 0.8 * 3 / 1000, abs=1e-3)
    first, middle = (platform.request("GET", f"{result['overlay_url']}?slice={index}").content for index in (0, 3))
    assert first != middle
    refused = platform.request("GET", f"{result['overlay_url']}?slice=6", expect=400).json()
    assert refused["errors"][0]["attr"] == "slice"


def test_dicom_slices_stay_with_their_patient_who_stays_unnamed(platform: Platform) -> None:
    dataset = platform.upload("CT", drawings.dicom_dataset())
    assert dataset["status"] == "ready", dataset["error"]
    assert (dataset["file_count"], dataset["dimensions"], dataset["modality"]) == (6, 2, "CT")
    samples = platform.request("GET", f"datasets/{dataset['id']}/samples/")
    parts = [sample["split"] for sample in samples.json()["results"]]
    assert parts[0::2] == parts[1::2], "two slices of one patient are on two sides of the split"
    assert set(parts) == {"train", "val"}
    model = platform.train("CT", dataset, **drawings.QUICK)
    assert model["status"] == "completed", model["error"]

    result = platform.infer(model, "IM000001", drawings.dicom(100, "patient-secret"))
    assert result["status"] == "completed", result["error"]
    labels = np.asarray(PILImage.open(io.BytesIO(platform.request("GET", result["mask_url"]).content)))
    assert labels.shape == (drawings.SIDE, drawings.SIDE)
    assert set(np.unique(labels)) <= {0, 255}
    assert result["spacing"] == pytest.approx([0.7, 0.7])
    logs = "".join(platform.log(name) for name in ("web", "train", "infer", "ingest"))
    told = [samples.text, str(dataset), str(model), str(result), logs]
    assert not any(word in text for text in told for word in ("patient-", "Secret"))
