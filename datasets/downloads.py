"""Downloads of a dataset as one ZIP."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

from django.http import HttpRequest, HttpResponseBase

from datasets.models import Dataset
from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.web.downloads import ZipEntry, object_response, pieces_of, zip_response
from ml_core.io.formats import suffix_of


def dataset_zip(request: HttpRequest, dataset: Dataset) -> HttpResponseBase:
    """Answer with the archive as it was uploaded, or with a ZIP of all samples of a later version.

    That ZIP has the layout of an upload. Raises WrongStateError while the dataset is not ready and has no archive.
    """
    if dataset.based_on is None and dataset.s3_key:
        name = dataset.archive_name or "archive.zip"
        kind = "application/zip"
        return object_response(
            request, dataset.s3_key, content_type=kind, name=name, sha256=dataset.checksum, download=True
        )
    if dataset.status != dataset.WORDS.done:
        raise WrongStateError("The dataset is not ready, so there is nothing to download. Wait for its check.")
    rows = list(dataset.samples.values_list("name", "image_key", "image_sha256", "mask_key"))
    return zip_response(_entries(rows), name=f"{dataset}.zip")


def _entries(rows: list[tuple[str, str, str, str]]) -> Iterator[ZipEntry]:
    for name, image_key, image_sha256, mask_key in rows:
        ending = suffix_of(image_key)
        # A DICOM series is stored as a ZIP. Its slices go into a folder, where an upload has them too.
        if ending == ".zip":
            with zipfile.ZipFile(storage.fetch(image_key, image_sha256)) as series:
                for member in series.namelist():
                    yield f"images/{name}/{member}", [series.read(member)]
        else:
            yield f"images/{name}{ending}", pieces_of(image_key)
        yield f"masks/{name}{suffix_of(mask_key)}", pieces_of(mask_key)
