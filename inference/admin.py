"""Inferences and batches in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.urls import reverse

from inference import services
from inference.models import InferenceBatch, InferenceResult, with_counts
from medseg_site.shared.web.admin import JOB_FIELDS, JobAdmin, json_block, link, picture


def model_link(row: Any) -> str:
    if row.model is None:
        return "deleted"
    return link(reverse("admin:models_app_segmentationmodel_change", args=[row.model_id]), row.model)


@admin.register(InferenceResult)
class InferenceResultAdmin(JobAdmin):
    list_display = (
        "preview",
        "image_name",
        "page",
        "status",
        "by_model",
        "in_batch",
        "dice",
        "sureness",
        "seconds",
        "created_at",
    )
    list_display_links = ("image_name",)
    list_filter = ("status", ("model", admin.RelatedOnlyFieldListFilter), "created_at")
    search_fields = ("image_name", "model__name", "input_sha256", "uuid")
    date_hierarchy = "created_at"
    actions = ("cancel", "retry", "delete_selected")
    fieldsets = (
        (None, {"fields": ("large_preview", "image_name", "by_model", "in_batch", "page")}),
        ("Result", {"fields": ("classes_json", "metrics_json", "sureness", "warnings", "shape", "spacing", "seconds")}),
        (
            "Storage",
            {
                "fields": (
                    "input_image_s3_key",
                    "input_sha256",
                    "output_image_s3_key",
                    "output_sha256",
                    "certainty_key",
                    "certainty_sha256",
                    "reference_key",
                    "reference_name",
                )
            },
        ),
        ("Job", {"fields": ("created_at", *JOB_FIELDS), "classes": ("collapse",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("model", "batch")

    def delete_row(self, user: Any, row: Any) -> None:
        services.delete_inference(user=user, inference=row)

    @admin.action(description="Cancel")
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.on_each(
            request, queryset, "Stopping", lambda row: services.cancel_inference(user=request.user, inference=row)
        )

    @admin.action(description="Try again")
    def retry(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.on_each(
            request, queryset, "Queued again", lambda row: services.retry_inference(user=request.user, inference=row)
        )

    @admin.display(description="")
    def preview(self, row: Any) -> str:
        return self._picture(row, 56)

    @admin.display(description="")
    def large_preview(self, row: Any) -> str:
        return self._picture(row, 256)

    def _picture(self, row: Any, size: int) -> str:
        if not row.output_image_s3_key:
            return "–"
        return picture(f"{reverse('inference-overlay', args=[row.pk])}?opacity=0.5", size)

    @admin.display(description="model", ordering="model__name")
    def by_model(self, row: Any) -> str:
        return model_link(row)

    @admin.display(description="batch", ordering="batch")
    def in_batch(self, row: Any) -> str:
        if row.batch is None:
            return "–"
        return link(reverse("admin:inference_inferencebatch_change", args=[row.batch_id]), row.batch)

    @admin.display(description="Dice")
    def dice(self, row: Any) -> str:
        value = (row.metrics or {}).get("dice")
        return f"{value:.3f}" if isinstance(value, float) else "–"

    @admin.display(description="confidence", ordering="confidence")
    def sureness(self, row: Any) -> str:
        return "–" if row.confidence is None else f"{row.confidence:.3f}"

    @admin.display(description="classes")
    def classes_json(self, row: Any) -> str:
        return json_block(row.classes)

    @admin.display(description="metrics")
    def metrics_json(self, row: Any) -> str:
        return json_block(row.metrics)


@admin.register(InferenceBatch)
class InferenceBatchAdmin(JobAdmin):
    list_display = ("archive_name", "page", "status", "by_model", "images_link", "completed", "failed", "created_at")
    list_filter = ("status", ("model", admin.RelatedOnlyFieldListFilter), "created_at")
    search_fields = ("archive_name", "model__name", "uuid")
    date_hierarchy = "created_at"
    fieldsets = (
        (None, {"fields": ("archive_name", "by_model", "images_link", "completed", "failed", "issues_json", "page")}),
        ("Storage", {"fields": ("archive_key",)}),
        ("Job", {"fields": ("created_at", *JOB_FIELDS), "classes": ("collapse",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = with_counts(super().get_queryset(request).select_related("model"))
        annotated: QuerySet[Any] = rows.annotate(
            image_count=F("total"), completed_count=F("completed"), failed_count=F("failed")
        )
        return annotated

    def delete_row(self, user: Any, row: Any) -> None:
        services.delete_batch(user=user, batch=row)

    @admin.display(description="model", ordering="model__name")
    def by_model(self, row: Any) -> str:
        return model_link(row)

    @admin.display(description="images", ordering="image_count")
    def images_link(self, row: Any) -> str:
        url = reverse("admin:inference_inferenceresult_changelist")
        return link(f"{url}?batch__id__exact={row.pk}", row.image_count)

    @admin.display(description="completed", ordering="completed_count")
    def completed(self, row: Any) -> int:
        return int(row.completed_count)

    @admin.display(description="failed", ordering="failed_count")
    def failed(self, row: Any) -> int:
        return int(row.failed_count)

    @admin.display(description="files left out")
    def issues_json(self, row: Any) -> str:
        return json_block(row.issues)
