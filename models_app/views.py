"""Pages of models: the list, the form that starts a training, and the page of one model."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from datasets.models import Dataset
from medseg_site.shared.base.text import whole_number
from medseg_site.shared.web.pages import end_live_part, end_text, is_live, page_of, tell, to_page
from ml_core.measures.results import Metrics
from ml_core.networks.catalogue import ARCHITECTURES
from models_app import display, services
from models_app.forms import TrainForm
from models_app.models import SegmentationModel

MODELS_PER_PAGE = 25


def rows_of(user: Any) -> QuerySet[SegmentationModel]:
    """The models of a user with what a line of the list shows. It takes one query, whatever the number of rows."""
    shown = SegmentationModel.objects.visible_to(user).select_related("dataset")
    of_model = SegmentationModel.objects.filter(pk=OuterRef("pk")).order_by().values("pk")
    # The table of inferences belongs to an app above this one, so it is counted through its relation.
    inferences = of_model.annotate(number=Count("inferences")).values("number")
    annotated: QuerySet[SegmentationModel] = shown.annotate(inference_count=Coalesce(Subquery(inferences), 0))
    return annotated


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
        "choices": _choices(form),
        "advanced_given": form.is_bound and bool(form.hyperparameters()),
    }
    return render(request, "models_app/model_create.html", context, status=422 if form.errors else 200)


def _choices(form: TrainForm) -> dict[str, object]:
    """What the page needs to offer only choices that go together. The server checks them again."""
    networks = {
        name: {"encoders": item.encoders, "dimensions": item.dimensions} for name, item in ARCHITECTURES.items()
    }
    # This field is a ModelChoiceField, which has a queryset.
    datasets = form.fields["dataset"].queryset.values_list("pk", "dimensions")  # type: ignore[attr-defined]
    return {"architectures": networks, "dimensions": dict(datasets)}


@login_required
@require_POST
def model_plan(request: HttpRequest) -> HttpResponse:
    """A preview of the plan for what the form holds now. Nothing is started."""
    form = TrainForm(request.POST, user=request.user)
    # The result is ignored, because the name may still be missing.
    form.is_valid()
    errors = form.advanced_errors()
    context: dict[str, object] = {
        "errors": errors,
        "problems": [{"name": name, "label": form[name].label, "text": text} for name, text in errors.items()],
        "has_dataset": bool(form.data.get("dataset")),
    }
    if form.plan and not errors:
        context["groups"] = display.planned(
            form.plan.hyperparameters(), form.plan.reasons, asked=set(form.hyperparameters())
        )
    return render(request, "models_app/partials/plan_preview.html", context)


def _chosen_dataset(request: HttpRequest) -> Dataset | None:
    """The ready dataset that `?dataset=` names. Without a name, the only ready dataset, if there is just one."""
    ready = Dataset.objects.visible_to(request.user).filter(status="ready")
    text = request.GET.get("dataset", "")
    if (number := whole_number(text)) is not None:
        return ready.filter(pk=number).first()
    newest = list(ready[:2])
    return newest[0] if len(newest) == 1 else None


def _initial(request: HttpRequest) -> dict[str, object]:
    dataset = _chosen_dataset(request)
    return {"dataset": dataset.pk, "name": dataset.name} if dataset else {}


@login_required
@require_GET
def model_detail(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(rows_of(request.user), pk=pk)
    metrics = Metrics.from_json(model.metrics) if model.metrics else None
    context = {
        "model": model,
        "metrics": metrics,
        "headline": display.headline(metrics) if metrics else [],
        "reliability_points": display.reliability_points(metrics.calibration) if metrics else {},
        "worst_cases": display.worst_cases(metrics) if metrics else [],
        "decided": display.decided(model),
        "groups": display.plan_of(model),
        "weights_due": model.are_weights_due,
        "delete_blocked": services.why_not_deletable(model),
        "resume_blocked": services.why_not_resumable(user=request.user, model=model),
        "use_blocked": services.why_not_usable(model),
        "latest_inferences": model.inferences.visible_to(request.user).filter(status="completed")[:6],
    }
    return render(request, "models_app/model_detail.html", context)


@login_required
@require_GET
def model_live(request: HttpRequest, pk: int) -> HttpResponseBase:
    """The live part of the page: the progress while the training runs, and the whole page once it has ended."""
    model = get_object_or_404(SegmentationModel.objects.visible_to(request.user), pk=pk)
    if not is_live(request):
        return redirect(model)
    if model.is_active:
        return render(
            request,
            "models_app/partials/model_live.html",
            {"model": model, "groups": display.plan_of(model), "oob": True},
        )
    if model.are_weights_due:
        return render(request, "models_app/partials/weights_due.html", {"model": model})
    return end_live_part(model_detail(request, pk), *end_text(model))


@login_required
@require_POST
def model_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(SegmentationModel.objects.visible_to(request.user), pk=pk)
    tell(
        request,
        "The training is stopping. Its best weights are kept.",
        lambda: services.cancel_model(user=request.user, model=model),
    )
    return to_page(model)


@login_required
@require_POST
def model_resume(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(SegmentationModel.objects.visible_to(request.user), pk=pk)
    texts = {name: request.POST.get(name, "") for name in services.RESUMABLE}
    changes = {name: number for name, text in texts.items() if (number := whole_number(text)) is not None}
    tell(
        request,
        "The training goes on from its last checkpoint.",
        lambda: services.resume_model(user=request.user, model=model, changes=changes),
    )
    return to_page(model)


@login_required
@require_POST
def model_delete(request: HttpRequest, pk: int) -> HttpResponse:
    model = get_object_or_404(SegmentationModel.objects.visible_to(request.user), pk=pk)
    name = str(model)
    done = tell(
        request, f"{name} and its files are deleted.", lambda: services.delete_model(user=request.user, model=model)
    )
    return to_page("models_app:list" if done else model)
