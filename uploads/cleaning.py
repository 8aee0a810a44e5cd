"""The worker's side of uploads: what nobody goes on with is removed, from the store too."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from uploads.backends import parts_of
from uploads.models import Upload

log = logging.getLogger(__name__)


def remove(upload: Upload) -> None:
    """Remove an aborted upload: the store first, then the row, so that a crash in between leaves something to find."""
    parts_of(upload).remove(upload)
    Upload.objects.filter(pk=upload.pk, state=Upload.ABORTED).delete()


def clean() -> int:
    """Remove what nobody touched for MEDSEG_UPLOAD_KEEP_HOURS and what a stopped process left aborted. Returns how many."""
    before = timezone.now() - timedelta(hours=settings.MEDSEG_UPLOAD_KEEP_HOURS)
    old = Q(updated_at__lt=before)
    Upload.objects.filter(old, state=Upload.USED).delete()  # its file has another owner now
    unfinished = Q(state__in=[Upload.OPEN, Upload.COMPLETE])
    count = 0
    for upload in Upload.objects.filter((old & unfinished) | Q(state=Upload.ABORTED)):
        # The UPDATE repeats the condition: somebody may have gone on with it in between.
        still = Upload.objects.filter((old & unfinished) | Q(state=Upload.ABORTED), pk=upload.pk)
        if not still.update(state=Upload.ABORTED):
            continue
        try:
            remove(upload)
            count += 1
        except Exception:
            log.exception("upload %s could not be removed; the next round tries again", upload.uuid)
    return count
