"""Pages of models: the list, the form that starts a training, and what came out of it."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from datasets.models import Dataset
from medseg_site.shared.pages import end_live_part, end_text, is_live, page_of, tell, to_page
from ml_core.architectures import ARCHITECTURES
from ml_core.config import specs
from models_app import services
from models_app.forms import TrainForm
from models_app.models import SegmentationModel

MODELS_PER_PAGE = 25
WORST_CASES = 6
# Name in `metrics`, heading, what it means, and whether it is a distance (whose unit the metrics name).
METRICS = [
    ("dice", "Dice", "Overlap of prediction and reference: 1 is perfect.", False),
    ("iou", "IoU", "Intersection over union; stricter than Dice.", False),
    ("precision", "Precision", "Share of what was found that is right.", False),
    ("recall", "Recall", "Share of what is there that was found.", False),
    ("hd95", "HD95", "95th percentile of the distance between the outlines: 0 is perfect.", True),
    ("nsd", "NSD", "Share of the outline that lies within the tolerance.", False),
]


def rows_of(user: Any) -> QuerySet[SegmentationModel]:
    """Models with what a line of a list shows. One query."""
    shown = SegmentationModel.objects.visible_to(user).select_related("dataset")
    annotated: QuerySet[SegmentationModel] = shown.annotate(inference_count=Count("inferences", distinct=True))
    return annotated.order_by("-created_at", "-id")  # counting drops the table's own order


@login_required
@require_GET
def model_list(request: HttpRequest) -> HttpResponse:
    page = page_of(request, rows_of(request.user), MODELS_PER_PAGE)
    has_ready = Dataset.objects.visible_to(request.user).filter(status="ready").exists()
    return render(request, "models_app/model_list.html", {"page": page, "has_ready_dataset": has_ready})


@login_required
@require_GET
def model_row(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(rows_of(request.user), pk=pk)
    return render(request, "models_app/partials/model_row.html", {"model": model})


@login_required
@require_http_methods(["GET", "POST"])
def model_create(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        form = TrainForm(request.POST, user=request.user)
        if form.is_valid() and (model := form.start()):
            return to_page(model)
    else:
        form = TrainForm(initial=_initial(request), user=request.user)
    has_ready = Dataset.objects.visible_to(request.user).filter(status="ready").exists()
    context = {
        "form": form,
        "has_ready_dataset": has_ready,
        "encoders": {name: item.encoders for name, item in ARCHITECTURES.items()},
        "advanced_given": form.is_bound and bool(form.hyperparameters()),
    }
    return render(request, "models_app/model_create.html", context, status=422 if form.errors else 200)


def _chosen_dataset(request: HttpRequest) -> Dataset | None:
    """The ready dataset of `?dataset=`; the only one there is where none is named."""
    ready = Dataset.objects.visible_to(request.user).filter(status="ready")
    wanted = request.GET.get("dataset", "")
    if wanted.isdigit() and len(wanted) < 19:
        return ready.filter(pk=int(wanted)).first()
    found = list(ready[:2])
    return found[0] if len(found) == 1 else None


def _initial(request: HttpRequest) -> dict[str, Any]:
    dataset = _chosen_dataset(request)
    return {"dataset": dataset.pk, "name": dataset.name} if dataset else {}


@login_required
@require_GET
def model_detail(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(rows_of(request.user), pk=pk)
    context = {
        "model": model,
        "headline": _headline(model.metrics),
        "worst_cases": _worst_cases(model.metrics),
        "used": _used(model),
        "delete_blocked": _delete_blocked(model),
        "resume_blocked": "" if model.dataset_id else "Its dataset was deleted, so the training cannot go on.",
        "latest_inferences": model.inferences.visible_to(request.user).filter(status="completed")[:6],
    }
    return render(request, "models_app/model_detail.html", context)


def _headline(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    intervals, unit = metrics.get("ci95") or {}, metrics.get("unit") or ""
    return [
        {
            "name": name,
            "label": f"{label} ({unit})" if is_distance and unit else label,
            "help": text,
            "value": metrics.get(name),
            "interval": intervals.get(name),
            "is_distance": is_distance,
        }
        for name, label, text, is_distance in METRICS
    ]


def _worst_cases(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases that have a picture, worst Dice first; those whose Dice is undefined come last."""
    cases = [case for case in metrics.get("per_case") or [] if case.get("picture")]
    return sorted(cases, key=lambda case: (case.get("dice") is None, case.get("dice") or 0.0))[:WORST_CASES]


def _used(model: SegmentationModel) -> list[dict[str, Any]]:
    """Every hyperparameter: the value really used, whether the user asked for it, and why it was chosen."""
    reasons = model.plan.get("reasons") or {}
    rows = []
    for name, spec in specs().items():
        value = model.hyperparameters.get(name)
        rows.append(
            {
                "label": spec.label,
                "unit": spec.unit,
                "value": spec.choices.get(value, value) if spec.choices and value is not None else value,
                "asked": name in model.requested,
                "reason": reasons.get(name, ""),
            }
        )
    known = specs()
    other = [
        {
            "label": name.replace("_", " ").capitalize(),
            "unit": "",
            "value": model.plan.get(name),
            "asked": False,
            "reason": text,
        }
        for name, text in reasons.items()
        if name not in known
    ]
    return [*rows, *other]


def _delete_blocked(model: SegmentationModel) -> str:
    """Why the model cannot be deleted now; empty when it can."""
    if model.is_active:
        return "This model is being trained. Cancel the training first."
    if model.inferences.filter(status__in=["queued", "running"]).exists():
        return "Images are being segmented with this model. Wait until they are done."
    return ""


@login_required
@require_GET
def model_live(request: HttpRequest, pk: int) -> HttpResponseBase:
    """The progress of a training, then the whole page."""
    model = get_object_or_404(SegmentationModel.objects.visible_to(request.user), pk=pk)
    if not is_live(request):
        return redirect(model)
    if model.is_active:
        return render(
            request, "models_app/partials/model_live.html", {"model": model, "used": _used(model), "oob": True}
        )
    return end_live_part(model_detail(request, pk), *end_text(model))


@login_required
@require_POST
def model_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(SegmentationModel.objects.visible_to(request.user), pk=pk)
    tell(request, "The training is stopping. Its best weights are kept.", lambda: services.cancel_model(model=model))
    return to_page(model)


@login_required
@require_POST
def model_resume(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(SegmentationModel.objects.visible_to(request.user), pk=pk)
    tell(request, "The training goes on from its last checkpoint.", lambda: services.resume_model(model=model))
    return to_page(model)


@login_required
@require_POST
def model_delete(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(SegmentationModel.objects.visible_to(request.user), pk=pk)
    name = str(model)
    done = tell(request, f"{name} and its files are deleted.", lambda: services.delete_model(model=model))
    return to_page("models_app:list" if done else model)
