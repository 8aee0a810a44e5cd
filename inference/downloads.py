"""The results of a batch as one ZIP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django.http import HttpResponseBase

from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.web.downloads import ZipEntry, pieces_of, zip_response
from ml_core.io.formats import stem, suffix_of


def batch_zip(batch: InferenceBatch) -> HttpResponseBase:
    """masks/ and certainty/<name>.png|.nii.gz for each image that could be segmented, and summary.json with the numbers of all."""
    facts = {"batch": batch.pk, "model": str(batch.model), "model_id": batch.model_id}
    return zip_response(
        _entries(facts, list(batch.inferences.order_by("id").defer("log", "timeline"))), name=f"batch-{batch.pk}.zip"
    )


def _entries(facts: dict[str, Any], rows: list[InferenceResult]) -> Iterator[ZipEntry]:
    used: set[str] = set()
    entries: list[dict[str, Any]] = []
    for row in rows:
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
            yield entry["mask"], pieces_of(row.output_image_s3_key)
            if row.certainty_key:
                entry["certainty"] = f"certainty/{name}"
                yield entry["certainty"], pieces_of(row.certainty_key)
        entries.append(entry)
    yield "summary.json", [json.dumps({**facts, "images": entries}, indent=1).encode()]


def _free_name(row: InferenceResult, used: set[str]) -> str:
    """Two images of the same name in two folders keep their own masks."""
    own, suffix = stem(row.image_name), suffix_of(row.output_image_s3_key)
    name = f"{own}{suffix}"
    if name in used:
        name = f"{own}_{row.pk}{suffix}"
    used.add(name)
    return name
