"""The Celery application. Each kind of work has its own queue, so that long work never holds up another kind."""

import importlib
import os
import threading

from celery import Celery
from celery.signals import beat_init, worker_process_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "medseg_site.settings")

app = Celery("medseg")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_process_init.connect
def preload(**kwargs: object) -> None:
    """Load PyTorch in the inference worker (MEDSEG_PRELOAD=1) before anybody waits for it.

    It runs in a thread, because Celery kills a process whose start takes more than four seconds.
    """
    if os.environ.get("MEDSEG_PRELOAD"):
        names = ["segmentation_models_pytorch", "inference.prediction"]
        threading.Thread(target=lambda: [importlib.import_module(name) for name in names], daemon=True).start()


@beat_init.connect
@worker_process_init.connect
def tidy_up(**kwargs: object) -> None:
    """Start the hourly sweep of this machine's disk. A Celery task would reach only one machine."""
    from medseg_site.local_disk import sweep_now_and_then

    threading.Thread(target=sweep_now_and_then, daemon=True).start()
