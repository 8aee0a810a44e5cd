"""From a ZIP of pictures to label maps, over HTTP, on a whole platform."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image as PILImage
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.e2e import drawings
from tests.platform import Json, Platform

pytestmark = pytest.mark.e2e

SEED = 100  # of an image that no training has seen


def pixels(platform: Platform, path: str, mode: str = "L") -> NDArray[np.uint8]:
    """A PNG that the platform serves: (H, W), or (H, W, 3) for the mode RGB."""
    answer = platform.request("GET", path)
    assert answer.headers["Content-Type"] == "image/png"
    return np.asarray(PILImage.open(io.BytesIO(answer.content)).convert(mode))


@pytest.fixture(scope="module")
def inference(platform: Platform, model: Json) -> Json:
    """The unseen image, segmented and scored against its mask."""
    image = drawings.png(drawings.disc(SEED)[0])
    return platform.infer(model, "unseen.png", image, mask=("unseen_mask.png", drawings.mask_png(SEED)))


def test_an_uploaded_zip_becomes_a_ready_dataset(platform: Platform, dataset: Json) -> None:
    assert dataset["status"] == "ready", dataset["error"]
    assert dataset["issues"] == []
    assert (dataset["file_count"], dataset["dimensions"], dataset["channels"]) == (8, 2, 1)
    assert [item["value"] for item in dataset["classes"]] == [0, 255]
    assert dataset["checksum"] == hashlib.sha256(drawings.png_dataset()).hexdigest()
    samples = platform.get(f"datasets/{dataset['id']}/samples/")["results"]
    assert [sample["name"] for sample in samples] == [f"case_{seed:02d}" for seed in range(8)]
    assert {sample["split"] for sample in samples} == {"train", "val"}
    assert np.array_equal(pixels(platform, samples[3]["image_url"]), drawings.disc(3)[0])
    assert np.array_equal(pixels(platform, samples[3]["mask_url"]) == 255, drawings.disc(3)[1])
    thumbnail = PILImage.open(io.BytesIO(platform.request("GET", samples[3]["thumbnail_url"]).content))
    assert np.asarray(thumbnail.convert("RGB")).std() > 0


def test_a_training_ends_with_curves_and_metrics(platform: Platform, dataset: Json, model: Json) -> None:
    assert model["status"] == "completed", model["error"]
    assert (model["name"], model["version"], model["dataset"], model["attempt"]) == ("Discs", 1, dataset["id"], 1)
    assert {**model["hyperparameters"], **drawings.QUICK} == model["hyperparameters"]
    assert model["hyperparameters"]["architecture"] == "plain-unet"  # planned: it was left out
    assert model["plan"]["reasons"]["architecture"]
    assert model["estimate"]["images_per_second"] > 0
    assert set(model["decisions"]) == {"serving", "mirroring", "postprocessing"}
    epochs = platform.epochs(model)
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    metrics = model["metrics"]
    held_out = [s["id"] for s in platform.get(f"datasets/{dataset['id']}/samples/?split=val")["results"]]
    assert [row["sample"] for row in metrics["per_case"]] == held_out
    assert pixels(platform, f"models/{model['id']}/cases/{held_out[0]}/overlay/", "RGB").shape == (64, 64, 3)
    assert metrics["n_cases"] == len(held_out)
    assert metrics["dice"] > 0.7, "a bright disc on dim noise is learnt in two epochs"
    assert 0 < metrics["iou"] < metrics["dice"] < 1


def test_a_websocket_tells_the_state_at_once_and_then_every_change(watched_training: tuple[Json, list[Json]]) -> None:
    model, messages = watched_training
    assert messages, "nothing was said"
    first = messages[0]
    assert (first["type"], first["id"], first["error"]) == ("status", model["id"], None)
    assert first["status"] in {"queued", "training"}
    assert {message["type"] for message in messages} == {"status", "progress", "epoch"}
    assert [message["epoch"] for message in messages if message["type"] == "epoch"] == [1, 2]
    assert messages[-1] == {"type": "status", "status": "completed"}


def test_a_websocket_refuses_pages_of_other_sites(platform: Platform, model: Json) -> None:
    address = f"{platform.url.replace('http', 'ws')}/ws/models/{model['id']}/"
    with pytest.raises(InvalidStatus) as refused, connect(address, origin=Origin("http://other.example"), proxy=None):
        pass
    assert refused.value.response.status_code == 403


def test_the_model_package_holds_tensors_and_documents_but_no_pickle(platform: Platform, model: Json) -> None:
    content = platform.request("GET", f"models/{model['id']}/download/").content
    assert hashlib.sha256(content).hexdigest() == model["checksum"]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(archive.namelist())
        documents = {
            "package.json",
            "plan.json",
            "metrics.json",
            "split.json",
            "decisions.json",
            "learnt_from.json",
            "README.md",
        }
        converted = (
            {"openvino_0.xml", "openvino_0.bin"} if model["decisions"]["serving"]["runtime"] == "openvino" else set()
        )
        assert names == {*documents, *converted, "weights_0.safetensors"}
        tensors = safetensors.numpy.load(archive.read("weights_0.safetensors"))
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())
        assert sum(tensor.size for tensor in tensors.values()) > 1_000_000
        plan = json.loads(archive.read("plan.json"))
        assert plan["class_values"] == [0, 255]
        assert json.loads(archive.read("metrics.json"))["dice"] == pytest.approx(model["metrics"]["dice"])


def test_a_label_map_has_the_images_size_and_the_datasets_values(platform: Platform, inference: Json) -> None:
    assert inference["status"] == "completed", inference["error"]
    assert inference["warnings"] == []
    labels = pixels(platform, inference["mask_url"])
    truth = drawings.disc(SEED)[1]
    assert labels.shape == truth.shape
    assert set(np.unique(labels)) == {0, 255}
    found = labels == 255
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.7
    assert inference["metrics"]["dice"] == pytest.approx(dice)
    certainty = pixels(platform, inference["certainty_url"])
    assert certainty.shape == truth.shape
    assert inference["confidence"] == pytest.approx(certainty[found].mean() / 255, abs=0.003)
    background, disc = inference["classes"]
    assert (background["pixels"], disc["pixels"]) == (int((~found).sum()), int(found.sum()))
    assert disc["fraction"] == pytest.approx(found.mean())


def test_an_overlay_lays_the_class_colour_over_the_image(platform: Platform, inference: Json) -> None:
    found = pixels(platform, inference["mask_url"]) == 255
    image = pixels(platform, inference["image_url"], "RGB")
    assert np.array_equal(image[..., 0], drawings.disc(SEED)[0])
    color = [int(inference["classes"][1]["color"][at : at + 2], 16) for at in (1, 3, 5)]
    solid = pixels(platform, f"{inference['overlay_url']}?opacity=1", "RGB")
    assert (solid[found] == color).all()
    assert np.array_equal(solid[~found], image[~found])
    assert np.array_equal(pixels(platform, f"{inference['overlay_url']}?opacity=0", "RGB"), image)
    half = pixels(platform, f"{inference['overlay_url']}?opacity=0.5", "RGB").astype(float)
    assert np.abs(half[found] - (image[found].astype(float) + color) / 2).max() <= 0.5
    refused = platform.request("GET", f"{inference['overlay_url']}?opacity=2", expect=400).json()
    assert refused["errors"][0]["attr"] == "opacity"


def test_a_second_inference_finds_the_model_warm(platform: Platform, model: Json, inference: Json) -> None:
    loaded = platform.times_loaded()
    assert loaded >= 1, platform.log("infer")
    for seed in (SEED + 1, SEED + 2):
        again = platform.infer(model, f"{seed}.png", drawings.png(drawings.disc(seed)[0]))
        assert again["status"] == "completed", again["error"]
    assert platform.times_loaded() == loaded


def test_a_batch_comes_back_as_one_zip(platform: Platform, model: Json) -> None:
    sizes = {"a.png": 64, "b.png": 50, "c.png": 96}
    images = {f"more/{name}": drawings.png(drawings.disc(SEED, side)[0]) for name, side in sizes.items()}
    archive = drawings.zip_of({**images, "more/notes.txt": b"no image"})
    files = {"archive": ("images.zip", archive, "application/zip")}
    created = platform.request(
        "POST", "inference-batches/", data={"model": model["id"]}, files=files, expect=202
    ).json()
    batch = platform.wait_until_ended(f"inference-batches/{created['id']}/")
    assert (batch["status"], batch["total"], batch["completed"], batch["failed"]) == ("completed", 3, 3, 0)
    assert [issue["file"] for issue in batch["issues"]] == ["more/notes.txt"]
    content = platform.request("GET", f"inference-batches/{batch['id']}/download/").content
    with zipfile.ZipFile(io.BytesIO(content)) as found:
        expected = {f"{folder}/more/{name}" for folder in ("masks", "certainty") for name in sizes}
        assert set(found.namelist()) == {*expected, "summary.json"}
        summary = json.loads(found.read("summary.json"))["images"]
        for row in summary:
            labels = np.asarray(PILImage.open(io.BytesIO(found.read(row["mask"]))))
            side = sizes[row["mask"].removeprefix("masks/more/")]
            assert labels.shape == (side, side)
            assert 0 <= row["confidence"] <= 1
            assert row["classes"][1]["pixels"] == (labels == 255).sum() > 0
    listed = platform.get(f"inferences/?batch={batch['id']}")
    assert listed["count"] == 3
