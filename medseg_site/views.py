"""The home page: it shows what there is, what is running, and what to do next."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from datasets.models import Dataset
from inference.models import InferenceBatch, InferenceResult
from medseg_site.demo import start_demo as make_demo
from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.base.text import count_of, whole_number
from medseg_site.shared.web.pages import end_live_part, end_text, is_live, to_page
from models_app.models import SegmentationModel

RESULTS_SHOWN = 8
MODELS_SHOWN = 5


@login_required
@require_GET
def home(request: HttpRequest) -> HttpResponseBase:
    """The whole page. Its live part gets the list of running work, and the whole page once some of it has ended."""
    context = _context(request.user)
    shown = request.GET.get("running")
    if not is_live(request) or shown is None:
        return render(request, "home.html", context)
    if shown == context["running_keys"]:
        return render(request, "partials/running.html", context)
    ended = [row for key in shown.split(".") if (row := _ended(request.user, key))]
    text, kind = end_text(ended[0]) if ended else ("Your running work has changed.", "secondary")
    return end_live_part(render(request, "home.html", context), text, kind)


def _ended(user: Any, key: str) -> Any:
    """The row with a key such as "model-3" if it has ended; None otherwise."""
    kind, _, digits = key.partition("-")
    table = {table.KIND: table for table in (Dataset, SegmentationModel, InferenceBatch, InferenceResult)}.get(kind)
    number = whole_number(digits)
    if table is None or number is None:
        return None
    row = table.objects.visible_to(user).filter(pk=number).first()
    return row if row and not row.is_active else None


def _context(user: Any) -> dict[str, Any]:
    datasets = Dataset.objects.visible_to(user)
    models = SegmentationModel.objects.visible_to(user).select_related("dataset")
    inferences = InferenceResult.objects.visible_to(user).select_related("model")
    running = [
        *datasets.filter(status="uploaded")[:5],
        *models.filter(status__in=["queued", "training"])[:5],
        *InferenceBatch.objects.visible_to(user).filter(status__in=["queued", "running"])[:5],
        # The rows have no order, so that SQLite uses the index and does not read all single images in order of time.
        *inferences.filter(status__in=["queued", "running"], batch=None).order_by()[:5],
    ]
    latest_dataset = datasets.first()
    ready = datasets.filter(status="ready").first()
    usable = models.exclude(s3_key="").first()
    results = list(inferences.filter(status="completed")[:RESULTS_SHOWN])
    return {
        "latest_dataset": latest_dataset,
        "running": running,
        "running_keys": ".".join(f"{row.KIND}-{row.pk}" for row in running),
        "models": list(models.exclude(s3_key="")[:MODELS_SHOWN]),
        "results": results,
        "next": _next_step(latest_dataset, ready, usable, bool(results), bool(running)),
        "step": 4 if results else 3 if usable else 2 if ready else 1,
    }


def _next_step(
    latest: Dataset | None,
    ready: Dataset | None,
    usable: SegmentationModel | None,
    has_results: bool,
    is_running: bool,
) -> dict[str, str]:
    """The heading, the text and the one primary button of the home page."""
    if usable:
        return {
            "title": "Segment another image" if has_results else "Try your model on an image",
            "text": f"{usable} is ready. Give it an image that it has not seen.",
            "label": "Segment an image",
            "url": f"{reverse('inference:create')}?model={usable.pk}",
        }
    if ready and not is_running:
        return {
            "title": "Train your first model",
            "text": f"{ready.name} is ready with {count_of(ready.file_count, 'image')}. "
            "Everything else is planned from the data.",
            "label": "Train a model",
            "url": f"{reverse('models_app:create')}?dataset={ready.pk}",
        }
    if latest and latest.status == "error":
        return {
            "title": f"{latest.name} could not be used",
            "text": latest.error or "",
            "label": "See what is wrong",
            "url": latest.get_absolute_url(),
        }
    if is_running:
        return {
            "title": "Your work is running",
            "text": "You can leave this page: it goes on in the background.",
            "label": "",
            "url": "",
        }
    return {
        "title": "Start with a dataset",
        "text": "A ZIP file with a folder of images and a folder of masks is all that is needed.",
        "label": "Upload a dataset",
        "url": reverse("datasets:upload"),
    }


@login_required
@require_POST
def start_demo(request: HttpRequest) -> HttpResponse:
    """Make the synthetic example. When it is refused, the page shows the reason as a message."""
    try:
        dataset = make_demo(request.user)
    except MedSegError as error:
        messages.error(request, error.detail)
        return to_page("home")
    messages.success(
        request, "The synthetic example is made. Its pictures are drawn by a program; they show no patient."
    )
    return to_page(dataset)
