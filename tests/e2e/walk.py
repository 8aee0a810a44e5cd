"""The shortest way through all layers, for platforms on another storage or database."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage

from tests.e2e import drawings
from tests.platform import Json, Platform


@dataclass(frozen=True)
class Walked:
    """What the way through left behind: a row of each kind, all ended well."""

    dataset: Json
    model: Json
    inference: Json

    @property
    def paths(self) -> list[str]:
        """Of the rows, in an order in which they can be deleted."""
        return [
            f"inferences/{self.inference['id']}/",
            f"models/{self.model['id']}/",
            f"datasets/{self.dataset['id']}/",
        ]

    @property
    def keys(self) -> set[str]:
        """Of the objects that the rows name."""
        return {
            self.dataset["s3_key"],
            self.model["s3_key"],
            self.inference["input_image_s3_key"],
            self.inference["output_image_s3_key"],
        }


def walk(platform: Platform) -> Walked:
    """Upload, train, segment, look: asserts at every step that it went well."""
    dataset = platform.upload("Discs", drawings.png_dataset(pairs=5))
    assert dataset["status"] == "ready", dataset["error"]
    assert dataset["file_count"] == 5
    model = platform.train("Discs", dataset, **drawings.TINY, epochs=2)
    assert model["status"] == "completed", model["error"]
    assert [row["epoch"] for row in platform.epochs(model)] == [1, 2]
    content = platform.request("GET", f"models/{model['id']}/download/").content
    assert content[:2] == b"PK"
    inference = platform.infer(model, "unseen.png", drawings.png(drawings.disc(100)[0]))
    assert inference["status"] == "completed", inference["error"]
    labels = np.asarray(PILImage.open(io.BytesIO(platform.request("GET", inference["mask_url"]).content)))
    assert labels.shape == (drawings.SIDE, drawings.SIDE)
    assert [row["pixels"] for row in inference["classes"]] == [(labels == 0).sum(), (labels == 255).sum()]
    overlay = platform.request("GET", f"{inference['overlay_url']}?opacity=0.5").content
    assert PILImage.open(io.BytesIO(overlay)).size == (drawings.SIDE, drawings.SIDE)
    return Walked(dataset, model, inference)


def delete_all(platform: Platform, walked: Walked) -> None:
    for path in walked.paths:
        platform.request("DELETE", path, expect=204)
        platform.request("GET", path, expect=404)
