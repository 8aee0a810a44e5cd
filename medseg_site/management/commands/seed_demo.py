"""manage.py seed_demo: run the synthetic example, from the upload to a segmented image."""

from __future__ import annotations

import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.urls import reverse

from datasets.models import Dataset
from medseg_site.demo import start_demo
from medseg_site.shared.base.local_user import local_user

TIMEOUT_SECONDS = 900


class Command(BaseCommand):
    help = (
        "Uploads a synthetic dataset, trains a model on it for a short time and segments one image. "
        "The platform must be running."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        dataset = start_demo(local_user())
        self.stdout.write(
            f"Uploaded the synthetic dataset {dataset.pk}; its check and a training of about a minute follow."
        )
        shown, deadline = "", time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            state = self._state(dataset.pk)
            if state != shown:
                self.stdout.write(state)
                shown = state
            if state.startswith("Look at it"):
                return
            time.sleep(1)
        raise CommandError(
            f"The example did not end within {TIMEOUT_SECONDS // 60} minutes. Check that the platform is running "
            "(`make run`), and read its logs."
        )

    def _state(self, pk: int) -> str:
        dataset = Dataset.objects.get(pk=pk)
        if dataset.error:
            raise CommandError(dataset.error)
        model = dataset.models.first()
        if model is None:
            return f"Dataset: {dataset.status}"
        if model.error:
            raise CommandError(model.error)
        inference = model.inferences.first()
        if inference is None:
            epoch, epochs = model.progress.get("epoch", 0), model.progress.get("epochs") or "?"
            return f"Model: {model.status}" + (f", epoch {epoch} of {epochs}" if model.is_working else "")
        if inference.error:
            raise CommandError(inference.error)
        if inference.status != "completed":
            return f"Inference: {inference.status}"
        address = f"http://127.0.0.1:{settings.PORT}{reverse('inference:detail', args=[inference.pk])}"
        dice = (inference.metrics or {}).get("dice") or 0.0
        return f"Look at it: {address} (Dice against the reference: {dice:.3f})"
