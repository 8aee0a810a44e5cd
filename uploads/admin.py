"""The admin page of uploads. They can be looked at and stopped there."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat

from medseg_site.shared.web.admin import JobAdmin
from uploads import services
from uploads.models import Upload


@admin.register(Upload)
class UploadAdmin(JobAdmin):
    list_display = (
        "file_name",
        "purpose",
        "state",
        "megabytes",
        "parts_stored",
        "created_by",
        "created_at",
        "updated_at",
    )
    list_filter = ("state", "purpose", "created_at")
    search_fields = ("file_name", "uuid", "sha256")
    date_hierarchy = "created_at"
    fieldsets = (
        (None, {"fields": ("file_name", "purpose", "state", "created_by", "created_at", "updated_at")}),
        ("The file", {"fields": ("size", "part_size", "part_count", "parts_stored", "sha256")}),
        ("Storage", {"fields": ("uuid", "s3_bucket", "key", "backend_id")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request).select_related("created_by")
        annotated: QuerySet[Any] = rows.annotate(stored=Count("parts", filter=Q(parts__is_stored=True)))
        return annotated

    def delete_row(self, user: Any, row: Any) -> None:
        services.abort_upload(user=user, upload=row)

    @admin.display(description="size", ordering="size")
    def megabytes(self, row: Any) -> str:
        return filesizeformat(row.size)

    @admin.display(description="parts stored")
    def parts_stored(self, row: Any) -> str:
        return "in S3" if row.s3_bucket else f"{row.stored} of {row.part_count}"
