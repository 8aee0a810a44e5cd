"""Pages of datasets and their samples."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from datasets import services
from datasets.forms import ClassForm, ReadingForm
from datasets.models import Dataset, DatasetClass, Sample
from medseg_site.shared.base.text import whole_number
from medseg_site.shared.web.pages import end_live_part, end_text, is_live, page_of, tell, to_page

DATASETS_PER_PAGE = 25
SAMPLES_PER_PAGE = 24
ISSUES_SHOWN = 50
VERSIONS_SHOWN = 20


def rows_of(user: Any) -> QuerySet[Dataset]:
    """The datasets of a user with what a line of the list shows: classes, number of models, first sample.

    It takes two queries, whatever the number of rows.
    """
    first = Sample.objects.filter(dataset=OuterRef("pk")).order_by("position").values("pk")[:1]
    of_dataset = Dataset.objects.filter(pk=OuterRef("pk")).order_by().values("pk")
    models = of_dataset.annotate(number=Count("models")).values("number")
    shown = Dataset.objects.visible_to(user).prefetch_related("classes")
    annotated: QuerySet[Dataset] = shown.annotate(
        model_count=Coalesce(Subquery(models), 0), first_sample=Subquery(first)
    )
    return annotated


@login_required
@require_GET
def dataset_list(request: HttpRequest) -> HttpResponse:
    page = page_of(request, rows_of(request.user), DATASETS_PER_PAGE)
    return render(request, "datasets/dataset_list.html", {"page": page})


@login_required
@require_GET
def dataset_row(request: HttpRequest, pk: int) -> HttpResponse:
    """One line of the list. The page asks for it again and again while its dataset is being checked."""
    dataset = get_object_or_404(rows_of(request.user), pk=pk)
    return render(request, "datasets/partials/dataset_row.html", {"dataset": dataset})


@login_required
@require_GET
def dataset_upload(request: HttpRequest) -> HttpResponse:
    return render(request, "datasets/dataset_upload.html", _upload_context())


def _upload_context() -> dict[str, Any]:
    limit = settings.MEDSEG_MAX_UPLOAD_BYTES
    return {
        "max_bytes": limit,
        "max_megabytes": limit / 2**20,
        "parts_above": settings.MEDSEG_UPLOAD_PART_BYTES,
    }


@login_required
@require_GET
def dataset_version(request: HttpRequest, pk: int) -> HttpResponse:
    """The form for a new version. It starts with the names of the samples whose ids are in the query's `leave_out`."""
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    if dataset.status != dataset.WORDS.done:
        return to_page(dataset)
    chosen = [number for text in request.GET.getlist("leave_out") if (number := whole_number(text)) is not None]
    names = dataset.samples.filter(pk__in=chosen).values_list("name", flat=True)
    context = {"dataset": dataset, "leave_out": "\n".join(names), **_upload_context()}
    return render(request, "datasets/dataset_version.html", context)


@login_required
@require_GET
def dataset_detail(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = get_object_or_404(rows_of(request.user), pk=pk)
    models = list(dataset.models.visible_to(request.user)[:10])
    show_all = request.GET.get("issues") == "all"
    context = {
        "dataset": dataset,
        "classes": dataset.classes.all(),
        "ignored": dataset.fingerprint.get("ignored", []),
        "samples": page_of(request, dataset.all_samples(), SAMPLES_PER_PAGE),
        "issues": dataset.issues if show_all else dataset.issues[:ISSUES_SHOWN],
        "hidden_issues": 0 if show_all else max(0, len(dataset.issues) - ISSUES_SHOWN),
        "models": models,
        "versions": _versions_of(request.user, dataset),
        "delete_blocked": services.why_not_deletable(dataset),
        "recheck_blocked": services.why_not_recheckable(dataset),
        "train_blocked": services.why_not_trainable(dataset),
    }
    return render(request, "datasets/dataset_detail.html", context)


def _versions_of(user: Any, dataset: Dataset) -> list[Dataset]:
    """The versions of a dataset, the newest first; [] when there is only this one."""
    rows = Dataset.objects.visible_to(user).filter(family=dataset.family).order_by("-version")
    versions = list(rows.defer("fingerprint", "issues", "timeline", "log", "leave_out")[:VERSIONS_SHOWN])
    return versions if len(versions) > 1 else []


@login_required
@require_GET
def dataset_live(request: HttpRequest, pk: int) -> HttpResponseBase:
    """The live part of the page: the progress while the check runs, and the whole page once it has ended."""
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    if not is_live(request):
        return redirect(dataset)
    if dataset.is_active:
        return render(request, "datasets/partials/dataset_live.html", {"dataset": dataset, "oob": True})
    return end_live_part(dataset_detail(request, pk), *end_text(dataset))


@login_required
@require_POST
def dataset_recheck(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    tell(request, "The check has started again.", lambda: services.recheck_dataset(user=request.user, dataset=dataset))
    return to_page(dataset)


@login_required
@require_POST
def dataset_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    tell(request, "The check is stopping.", lambda: services.cancel_dataset(user=request.user, dataset=dataset))
    return to_page(dataset)


@login_required
@require_POST
def dataset_delete(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    done = tell(
        request,
        f"{dataset} and its files are deleted.",
        lambda: services.delete_dataset(user=request.user, dataset=dataset),
    )
    return to_page("datasets:list" if done else dataset)


@login_required
@require_POST
def dataset_reading(request: HttpRequest, pk: int) -> HttpResponse:
    """Make a version whose masks are read otherwise: with another background, or with other values that are ignored."""
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    form = ReadingForm(dataset, request.POST)
    if not form.is_valid():
        messages.error(request, "Choose one value as the background, and ignore others only. Nothing was changed.")
        return to_page(dataset)
    made: list[Dataset] = []
    done = tell(
        request,
        "A new version is being made, whose masks are read so.",
        lambda: made.append(services.create_version(user=request.user, base=dataset, reading=form.reading())),
    )
    return to_page(made[0] if done else dataset)


@login_required
@require_POST
def class_edit(request: HttpRequest, pk: int, class_pk: int) -> HttpResponse:
    """Change the name or colour of a class. The answer is the line of that class."""
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    item = get_object_or_404(DatasetClass.objects.select_related("dataset"), dataset=dataset, pk=class_pk)
    form = ClassForm(request.POST, instance=item)
    if form.is_valid():
        form.rename(request.user)
    if not is_live(request):
        return to_page(dataset)
    saved = not form.errors
    context = {"dataset": dataset, "item": item, "form": form, "saved": saved}
    return render(request, "datasets/partials/class_form.html", context)


@login_required
@require_GET
def sample_detail(request: HttpRequest, pk: int, sample_pk: int) -> HttpResponse:
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user).prefetch_related("classes"), pk=pk)
    sample = get_object_or_404(Sample, dataset=dataset, pk=sample_pk)
    siblings = dataset.samples
    context = {
        "dataset": dataset,
        "sample": sample,
        "previous": siblings.filter(position__lt=sample.position).order_by("-position").first(),
        "next": siblings.filter(position__gt=sample.position).order_by("position").first(),
        "depth": sample.shape[0] if len(sample.shape) == 3 else 1,
        "viewer": {
            "base": reverse("dataset-detail", args=[dataset.pk]) + f"samples/{sample.pk}/",
            "shape": sample.shape,
            "classes": dataset.class_dicts(),
            "name": sample.name,
        },
    }
    return render(request, "datasets/sample_detail.html", context)
