"""The results of a batch as one ZIP."""

from __future__ import annotations

import json
import tempfile
import zipfile
from typing import Any

from django.conf import settings

from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared import storage
from medseg_site.shared.downloads import StreamedFileResponse


def batch_zip(batch: InferenceBatch) -> StreamedFileResponse:
    """masks/ and certainty/<name>.png|.nii.gz for each image that could be segmented, and summary.json with the numbers of all."""
    temporary = tempfile.TemporaryFile(dir=settings.TMP_DIR)  # noqa: SIM115 (StreamedFileResponse closes it)
    used: set[str] = set()
    entries: list[dict[str, Any]] = []
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for row in batch.inferences.order_by("id").iterator(chunk_size=500):
            entry = {
                "id": row.pk,
                "image": row.image_name,
                "status": row.status,
                "error": row.error,
                "seconds": row.seconds,
                "classes": row.classes,
                "confidence": row.confidence,
                "warnings": row.warnings,
                "mask": None,
                "certainty": None,
            }
            if row.output_image_s3_key:
                name = _free_name(row, used)
                entry["mask"] = f"masks/{name}"
                archive.write(storage.fetch(row.output_image_s3_key, row.output_sha256), entry["mask"])
                if row.certainty_key:
                    entry["certainty"] = f"certainty/{name}"
                    archive.write(storage.fetch(row.certainty_key, row.certainty_sha256), entry["certainty"])
            entries.append(entry)
        summary = {
            "batch": batch.pk,
            "model": str(batch.model),
            "model_id": batch.model_id,
            "images": entries,
        }
        archive.writestr("summary.json", json.dumps(summary, indent=1))
    temporary.seek(0)
    return StreamedFileResponse(
        temporary, as_attachment=True, filename=f"batch-{batch.pk}.zip", content_type="application/zip"
    )


def _free_name(row: InferenceResult, used: set[str]) -> str:
    """Two images of the same name in two folders keep their own masks."""
    suffix = ".nii.gz" if row.output_image_s3_key.endswith(".nii.gz") else ".png"
    stem = row.image_name.removesuffix(".gz").rpartition(".")[0] or row.image_name
    name = f"{stem}{suffix}"
    if name in used:
        name = f"{stem}_{row.pk}{suffix}"
    used.add(name)
    return name
