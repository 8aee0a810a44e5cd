"""The Celery application: three queues, so that long work of one kind never holds up another."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "medseg_site.settings")

app = Celery("medseg")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
