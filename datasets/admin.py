"""Admin pages of datasets, their classes and their samples."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse

from datasets import services
from datasets.forms import ClassForm
from datasets.models import Dataset, DatasetClass, Sample
from medseg_site.shared.web.admin import JOB_FIELDS, JobAdmin, ReadOnlyAdmin, TabularInline, json_block, link, picture


class ClassInline(TabularInline):
    """The classes of a dataset. Their names and colours can be changed. The check decides which values there are."""

    model = DatasetClass
    form = ClassForm
    fields = ("value", "name", "color")
    readonly_fields = ("value",)
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Dataset)
class DatasetAdmin(JobAdmin):
    list_display = (
        "preview",
        "name",
        "version",
        "page",
        "status",
        "file_count",
        "samples_link",
        "models_link",
        "modality",
        "issue_count",
        "total_size_mb",
        "uploaded_at",
    )
    list_display_links = ("name",)
    list_filter = ("status", "dimensions", "modality", "is_synthetic", "uploaded_at")
    search_fields = ("name", "description", "archive_name", "checksum", "uuid")
    date_hierarchy = "uploaded_at"
    inlines = (ClassInline,)
    actions = ("cancel", "check_again", "delete_selected")
    editable_fields = ("name", "description")
    fieldsets = (
        (None, {"fields": ("name", "description", "preview", "samples_link", "models_link", "page")}),
        (
            "What was found",
            {"fields": ("modality", "dimensions", "channels", "file_count", "issues_json", "fingerprint_json")},
        ),
        (
            "Where it came from",
            {"fields": ("archive_name", "source_url", "version", "based_on", "is_synthetic", "uploaded_at")},
        ),
        ("Storage", {"fields": ("s3_bucket", "s3_key", "checksum", "total_size_mb")}),
        ("Job", {"fields": JOB_FIELDS, "classes": ("collapse",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        first = Sample.objects.filter(dataset=OuterRef("pk")).order_by("position").values("pk")[:1]
        samples = Sample.objects.filter(dataset=OuterRef("pk")).order_by().values("dataset").annotate(n=Count("pk"))
        rows = super().get_queryset(request).annotate(model_count=Count("models", distinct=True))
        annotated: QuerySet[Any] = rows.annotate(
            first_sample=Subquery(first), sample_count=Subquery(samples.values("n"))
        )
        return annotated

    def delete_row(self, user: Any, row: Any) -> None:
        services.delete_dataset(user=user, dataset=row)

    @admin.action(description="Cancel the check")
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.on_each(request, queryset, "Stopping", lambda row: services.cancel_dataset(user=request.user, dataset=row))

    @admin.action(description="Check again")
    def check_again(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.on_each(
            request,
            queryset,
            "Being checked again",
            lambda row: services.recheck_dataset(user=request.user, dataset=row),
        )

    @admin.display(description="")
    def preview(self, row: Any) -> str:
        if not row.first_sample:
            return "–"
        return picture(reverse("dataset-sample-thumbnail", args=[row.pk, row.first_sample]))

    @admin.display(description="samples", ordering="sample_count")
    def samples_link(self, row: Any) -> str:
        url = reverse("admin:datasets_sample_changelist")
        return link(f"{url}?dataset__id__exact={row.pk}", row.sample_count or 0)

    @admin.display(description="models", ordering="model_count")
    def models_link(self, row: Any) -> str:
        url = reverse("admin:models_app_segmentationmodel_changelist")
        return link(f"{url}?dataset__id__exact={row.pk}", row.model_count)

    @admin.display(description="issues")
    def issues_json(self, row: Any) -> str:
        return json_block(row.issues)

    @admin.display(description="fingerprint")
    def fingerprint_json(self, row: Any) -> str:
        return json_block(row.fingerprint)


@admin.register(Sample)
class SampleAdmin(ReadOnlyAdmin):
    list_display = ("preview", "name", "dataset_link", "split", "shape", "spacing", "page")
    list_display_links = ("name",)
    list_filter = ("split", ("dataset", admin.RelatedOnlyFieldListFilter))
    search_fields = ("name", "dataset__name")
    list_per_page = 50
    show_full_result_count = False
    fields = (
        "large_preview",
        "name",
        "dataset_link",
        "position",
        "split",
        "patient_group",
        "shape",
        "spacing",
        "image_key",
        "image_sha256",
        "mask_key",
        "mask_sha256",
        "thumbnail_key",
        "page",
    )
    readonly_fields = ("large_preview", "dataset_link", "page")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        visible = Dataset.objects.visible_to(request.user)
        return super().get_queryset(request).filter(dataset__in=visible).select_related("dataset")

    @admin.display(description="")
    def preview(self, row: Sample) -> str:
        return picture(reverse("dataset-sample-thumbnail", args=[row.dataset_id, row.pk]))

    @admin.display(description="")
    def large_preview(self, row: Sample) -> str:
        return picture(reverse("dataset-sample-thumbnail", args=[row.dataset_id, row.pk]), 192)

    @admin.display(description="dataset", ordering="dataset__name")
    def dataset_link(self, row: Sample) -> str:
        return link(reverse("admin:datasets_dataset_change", args=[row.dataset_id]), row.dataset)

    @admin.display(description="on the pages")
    def page(self, row: Sample) -> str:
        return link(reverse("datasets:sample", args=[row.dataset_id, row.pk]), "open")
