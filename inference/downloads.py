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
    """masks/ and certainty/<folder>/<name>.png|.nii.gz for each image that could be segmented, and summary.json.

    The folders are those of the ZIP that was sent. summary.json has the numbers of all images.
    """
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
    """The image's path without its ending; the whole path where that is taken, as scan.png and scan.tif would share it.

    Names that differ in capitals only would overwrite one another on Windows and macOS.
    """
    folder, _, base = row.image_name.rpartition("/")
    suffix = suffix_of(row.output_image_s3_key)
    above = "/".join(part for part in folder.split("/") if part not in ("", ".", ".."))
    short, whole = (f"{above}/{name}" if above else name for name in (stem(base), base))
    candidates = (f"{name}{suffix}" for name in (short, whole, f"{whole}_{row.pk}"))
    name = next(name for name in candidates if name.casefold() not in used)
    used.add(name.casefold())
    return name
