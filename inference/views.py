"""Pages of inferences and batches."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import F, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from inference import services
from inference.forms import AgainForm
from inference.models import InferenceBatch, InferenceResult, with_counts
from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.web.pages import end_live_part, end_text, is_live, page_of, tell, to_page
from ml_core.measures.results import ImageMetrics
from models_app.services import usable_models

INFERENCES_PER_PAGE = 25
BATCH_PAGE = 48
BATCHES_SHOWN = 10


def rows_of(user: Any) -> QuerySet[InferenceResult]:
    return InferenceResult.objects.visible_to(user).select_related("model__dataset", "batch")


def batches_of(user: Any) -> QuerySet[InferenceBatch]:
    """Batches with `total`, `completed` and `failed` (which counts the cancelled too). One query."""
    shown = InferenceBatch.objects.visible_to(user).select_related("model__dataset")
    return with_counts(shown)


@login_required
@require_GET
def inference_list(request: HttpRequest) -> HttpResponse:
    """Single images page by page; the images of a batch are on the batch's own page."""
    context = {
        "page": page_of(request, rows_of(request.user).filter(batch=None), INFERENCES_PER_PAGE),
        "batches": batches_of(request.user)[:BATCHES_SHOWN],
        "has_model": usable_models(request.user).exists(),
    }
    return render(request, "inference/inference_list.html", context)


@login_required
@require_GET
def inference_row(request: HttpRequest, pk: int) -> HttpResponse:
    inference = get_object_or_404(rows_of(request.user), pk=pk)
    return render(request, "inference/partials/inference_row.html", {"inference": inference})


@login_required
@require_GET
def inference_create(request: HttpRequest) -> HttpResponse:
    models = list(usable_models(request.user).select_related("dataset"))
    wanted = request.GET.get("model", "")
    chosen = next((model for model in models if str(model.pk) == wanted), models[0] if models else None)
    context = {
        "models": models,
        "chosen": chosen,
        "max_bytes": settings.MEDSEG_MAX_IMAGE_UPLOAD_BYTES,
        "max_archive_bytes": settings.MEDSEG_MAX_UPLOAD_BYTES,
        "parts_above": settings.MEDSEG_UPLOAD_PART_BYTES,
    }
    return render(request, "inference/inference_create.html", context)


@login_required
@require_GET
def inference_detail(request: HttpRequest, pk: int) -> HttpResponse:
    inference = get_object_or_404(rows_of(request.user), pk=pk)
    context = {
        "inference": inference,
        "retry_blocked": services.why_not_retryable(inference),
        "again": AgainForm(user=request.user, initial={"model": inference.model_id}),
        "has_model": usable_models(request.user).exists(),
        "metrics": ImageMetrics.from_json(inference.metrics) if inference.metrics else None,
        "depth": inference.shape[0] if len(inference.shape) == 3 else 1,
        "viewer": {
            "base": reverse("inference-detail", args=[inference.pk]),
            "shape": inference.shape,
            "classes": inference.classes,
            "name": inference.image_name,
            "certainty": bool(inference.certainty_key),
        },
    }
    return render(request, "inference/inference_detail.html", context)


@login_required
@require_GET
def inference_live(request: HttpRequest, pk: int) -> HttpResponseBase:
    """The progress of an inference, then the whole page."""
    inference = get_object_or_404(rows_of(request.user), pk=pk)
    if not is_live(request):
        return redirect(inference)
    if inference.is_active:
        return render(request, "inference/partials/inference_live.html", {"inference": inference, "oob": True})
    return end_live_part(inference_detail(request, pk), *end_text(inference))


@login_required
@require_POST
def inference_again(request: HttpRequest, pk: int) -> HttpResponse:
    inference = get_object_or_404(InferenceResult.objects.visible_to(request.user), pk=pk)
    form = AgainForm(request.POST, user=request.user)
    if not form.is_valid():
        messages.error(request, "This model has no weights. Choose another one.")
        return to_page(inference)
    try:
        return to_page(form.run(inference))
    except MedSegError as error:
        messages.error(request, error.detail)
        return to_page(inference)


@login_required
@require_POST
def inference_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    inference = get_object_or_404(InferenceResult.objects.visible_to(request.user), pk=pk)
    tell(
        request,
        "The segmentation is stopping.",
        lambda: services.cancel_inference(user=request.user, inference=inference),
    )
    return to_page(inference)


@login_required
@require_POST
def inference_retry(request: HttpRequest, pk: int) -> HttpResponse:
    inference = get_object_or_404(InferenceResult.objects.visible_to(request.user), pk=pk)
    tell(
        request,
        "The segmentation has started again.",
        lambda: services.retry_inference(user=request.user, inference=inference),
    )
    return to_page(inference)


@login_required
@require_POST
def inference_delete(request: HttpRequest, pk: int) -> HttpResponse:
    inference = get_object_or_404(InferenceResult.objects.visible_to(request.user), pk=pk)
    text = f"The result of {inference.image_name} and its files are deleted."
    tell(request, text, lambda: services.delete_inference(user=request.user, inference=inference))
    return to_page("inference:list")


@login_required
@require_GET
def batch_detail(request: HttpRequest, pk: int) -> HttpResponse:
    batch = get_object_or_404(batches_of(request.user), pk=pk)
    unsure_first = request.GET.get("order") == "unsure"
    order = [F("confidence").asc(nulls_last=True), "pk"] if unsure_first else ["pk"]
    page = page_of(request, batch.inferences.visible_to(request.user).order_by(*order), BATCH_PAGE)
    context = {
        "batch": batch,
        "page": page,
        "ended": _ended(batch),
        "unsure_first": unsure_first,
        "download_blocked": services.why_not_downloadable(batch),
    }
    return render(request, "inference/batch_detail.html", context)


@login_required
@require_GET
def batch_live(request: HttpRequest, pk: int) -> HttpResponseBase:
    batch = get_object_or_404(batches_of(request.user), pk=pk)
    if not is_live(request):
        return redirect(batch)
    if batch.is_active:
        return render(
            request, "inference/partials/batch_live.html", {"batch": batch, "ended": _ended(batch), "oob": True}
        )
    return end_live_part(batch_detail(request, pk), *end_text(batch))


def _ended(batch: Any) -> dict[str, Any]:
    """How many images of a batch have ended, and their share of all."""
    count = batch.completed + batch.failed
    return {"count": count, "fraction": count / batch.total if batch.total else 0.0}


@login_required
@require_POST
def batch_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    batch = get_object_or_404(InferenceBatch.objects.visible_to(request.user), pk=pk)
    tell(request, "The batch is stopping.", lambda: services.cancel_batch(user=request.user, batch=batch))
    return to_page(batch)


@login_required
@require_POST
def batch_delete(request: HttpRequest, pk: int) -> HttpResponse:
    batch = get_object_or_404(InferenceBatch.objects.visible_to(request.user), pk=pk)
    text = f"{batch}: its images and masks are deleted."
    tell(request, text, lambda: services.delete_batch(user=request.user, batch=batch))
    return to_page("inference:list")
