"""Admin pages of models and their epochs."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.urls import reverse

from medseg_site.shared.web.admin import JOB_FIELDS, JobAdmin, ReadOnlyAdmin, json_block, link, picture
from ml_core.measures.results import Metrics
from models_app import services
from models_app.display import worst_cases
from models_app.models import Epoch, SegmentationModel


@admin.register(SegmentationModel)
class SegmentationModelAdmin(JobAdmin):
    list_display = (
        "name",
        "version",
        "page",
        "status",
        "dataset_link",
        "architecture",
        "dice",
        "epochs_link",
        "inferences_link",
        "created_at",
    )
    list_filter = ("status", ("dataset", admin.RelatedOnlyFieldListFilter), "created_at")
    search_fields = ("name", "dataset__name", "checksum", "uuid")
    date_hierarchy = "created_at"
    actions = ("cancel", "resume", "delete_selected")
    fieldsets = (
        (None, {"fields": ("name", "version", "dataset_link", "epochs_link", "inferences_link", "page")}),
        ("Result", {"fields": ("dice", "worst_case", "metrics_json", "decisions_json", "warnings", "trained_at")}),
        (
            "How",
            {"fields": ("requested", "hyperparameters", "classes_json", "plan_json", "split_json", "estimate_json")},
        ),
        ("Storage", {"fields": ("s3_bucket", "s3_key", "checksum")}),
        ("Job", {"fields": ("created_at", *JOB_FIELDS), "classes": ("collapse",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request).select_related("dataset")
        annotated: QuerySet[Any] = rows.annotate(
            epoch_count=Count("epochs", distinct=True), inference_count=Count("inferences", distinct=True)
        )
        return annotated

    def delete_row(self, user: Any, row: Any) -> None:
        services.delete_model(user=user, model=row)

    @admin.action(description="Cancel the training")
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.on_each(request, queryset, "Stopping", lambda row: services.cancel_model(user=request.user, model=row))

    @admin.action(description="Resume the training")
    def resume(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.on_each(request, queryset, "Queued again", lambda row: services.resume_model(user=request.user, model=row))

    @admin.display(description="dataset", ordering="dataset__name")
    def dataset_link(self, row: Any) -> str:
        if row.dataset is None:
            return "deleted"
        return link(reverse("admin:datasets_dataset_change", args=[row.dataset_id]), row.dataset)

    @admin.display(description="architecture")
    def architecture(self, row: Any) -> str:
        used = row.hyperparameters
        return " / ".join(used[name] for name in ("architecture", "encoder") if used.get(name)) or "–"

    @admin.display(description="Dice")
    def dice(self, row: Any) -> str:
        value = row.metrics.get("dice")
        return f"{value:.3f}" if isinstance(value, float) else "–"

    @admin.display(description="worst case")
    def worst_case(self, row: Any) -> str:
        cases = worst_cases(Metrics.from_json(row.metrics)) if row.metrics else []
        if not cases:
            return "–"
        return picture(reverse("model-case-overlay", args=[row.pk, cases[0].sample]), 192)

    @admin.display(description="epochs", ordering="epoch_count")
    def epochs_link(self, row: Any) -> str:
        return link(f"{reverse('admin:models_app_epoch_changelist')}?model__id__exact={row.pk}", row.epoch_count)

    @admin.display(description="inferences", ordering="inference_count")
    def inferences_link(self, row: Any) -> str:
        url = reverse("admin:inference_inferenceresult_changelist")
        return link(f"{url}?model__id__exact={row.pk}", row.inference_count)

    @admin.display(description="metrics")
    def metrics_json(self, row: Any) -> str:
        return json_block(row.metrics)

    @admin.display(description="measured on the validation cases")
    def decisions_json(self, row: Any) -> str:
        return json_block(row.decisions)

    @admin.display(description="measured before the start")
    def estimate_json(self, row: Any) -> str:
        return json_block(row.estimate)

    @admin.display(description="plan")
    def plan_json(self, row: Any) -> str:
        return json_block(row.plan)

    @admin.display(description="split")
    def split_json(self, row: Any) -> str:
        return json_block(row.split)

    @admin.display(description="classes")
    def classes_json(self, row: Any) -> str:
        return json_block(row.classes)


@admin.register(Epoch)
class EpochAdmin(ReadOnlyAdmin):
    list_display = (
        "epoch",
        "model_link",
        "train_loss",
        "val_loss",
        "val_dice",
        "val_iou",
        "learning_rate",
        "seconds",
        "images_per_second",
    )
    list_filter = (("model", admin.RelatedOnlyFieldListFilter),)
    search_fields = ("model__name",)
    list_per_page = 100
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        visible = SegmentationModel.objects.visible_to(request.user)
        return super().get_queryset(request).filter(model__in=visible).select_related("model")

    @admin.display(description="model", ordering="model")
    def model_link(self, row: Epoch) -> str:
        return link(reverse("admin:models_app_segmentationmodel_change", args=[row.model_id]), row.model)
