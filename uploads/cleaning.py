"""The worker's side of uploads: it removes those that nobody continues, from the store and the database."""

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
    """Remove an aborted upload. The row goes last, so that after a crash in between the upload can still be found."""
    parts_of(upload).remove(upload)
    Upload.objects.filter(pk=upload.pk, state=Upload.ABORTED).delete()


def clean() -> int:
    """Remove uploads that nobody touched for MEDSEG_UPLOAD_KEEP_HOURS, and aborted ones. Returns the number removed.

    An upload stays aborted when the process that removed it was stopped.
    """
    before = timezone.now() - timedelta(hours=settings.MEDSEG_UPLOAD_KEEP_HOURS)
    old = Q(updated_at__lt=before)
    # The file of a used upload belongs to a dataset or batch now, so only the row is deleted.
    Upload.objects.filter(old, state=Upload.USED).delete()
    unfinished = Q(state__in=[Upload.OPEN, Upload.COMPLETE])
    count = 0
    for upload in Upload.objects.filter((old & unfinished) | Q(state=Upload.ABORTED)):
        # The UPDATE repeats the condition, because somebody may have continued the upload in between.
        still = Upload.objects.filter((old & unfinished) | Q(state=Upload.ABORTED), pk=upload.pk)
        if not still.update(state=Upload.ABORTED):
            continue
        try:
            remove(upload)
            count += 1
        except Exception:
            log.exception("upload %s could not be removed; the next round tries again", upload.uuid)
    return count
