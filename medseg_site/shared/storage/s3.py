"""The bucket as Django's storage: the one of django-storages, with small objects in one request each.

The library starts threads for every upload, which pays for large objects only, and keeps fewer connections than a batch
writes manifests at once.
"""

from __future__ import annotations

from typing import Any

from django.core.files import File
from storages.backends.s3 import S3Storage
from storages.utils import clean_name

from medseg_site.shared.storage.remote import CONFIG

SMALL_BYTES = 8 * 2**20


class QuickS3Storage(S3Storage):  # type: ignore[misc]  # the library has no types
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        made_of_settings: Any = getattr(self, "client_config")  # noqa: B009 (its type cannot be told)
        self.client_config = made_of_settings.merge(CONFIG)

    def _save(self, name: str, content: File[Any]) -> str:
        if content.size > SMALL_BYTES or self.gzip:
            saved: str = super()._save(name, content)
            return saved
        cleaned: str = clean_name(name)
        key = self._normalize_name(cleaned)
        content.seek(0)
        # The client itself: a resource object for each costs as much processor time as the request.
        parameters = self._get_write_parameters(cleaned, content)
        self.bucket.meta.client.put_object(Bucket=self.bucket_name, Key=key, Body=content.read(), **parameters)
        return cleaned
