"""The steps that faults meet: each begun, for the fault to fall into its middle."""

from __future__ import annotations

from tests.e2e import drawings
from tests.platform import Json
from tests.reliability.conftest import TRAINING, Stage


def begin(step: str, stage: Stage) -> Json | None:
    """{"path": of the row that is at work now}; None for an upload, which the fault has to meet as a request."""
    platform = stage.platform
    if step == "check":
        files = {"archive": ("x.zip", drawings.png_dataset(40), "application/zip")}
        row = platform.request("POST", "datasets/", data={"name": "Faulty"}, files=files, expect=202).json()
        return {"path": f"datasets/{row['id']}/"}
    if step == "training":
        row = platform.start_training("Faulty", stage.dataset, **TRAINING)
        platform.wait_for_epoch(row, 1)
        return {"path": f"models/{row['id']}/"}
    if step == "inference":
        archive = drawings.zip_of({f"{seed}.png": drawings.png(drawings.disc(seed)[0]) for seed in range(300, 312)})
        files = {"archive": ("x.zip", archive, "application/zip")}
        row = platform.request(
            "POST", "inference-batches/", data={"model": stage.model["id"]}, files=files, expect=202
        ).json()
        return {"path": f"inference-batches/{row['id']}/"}
    return None
