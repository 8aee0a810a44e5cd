"""The admin of job rows: nothing is added by hand, columns of the program are read-only, deletions go through services."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected as delete_after_question
from django.contrib.admin.utils import flatten_fieldsets
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.html import format_html

from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.base.text import count_of
from medseg_site.shared.catalogue import manifests

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
else:
    ModelAdmin, TabularInline = admin.ModelAdmin, admin.TabularInline

JOB_FIELDS = (
    "status",
    "error",
    "progress",
    "attempt",
    "cancel_requested",
    "interruptions",
    "due_at",
    "sent_at",
    "started_at",
    "heartbeat_at",
    "finished_at",
    "cancelled_at",
    "claim_token",
    "timeline_entries",
    "last_lines",
    "project",
    "created_by",
    "uuid",
)


class JobAdmin(ModelAdmin):
    """Subclasses set `fieldsets` and `editable_fields`, and define `delete_row`."""

    editable_fields: tuple[str, ...] = ()
    actions: tuple[str, ...] = ("delete_selected",)
    list_per_page = 50
    show_full_result_count = False

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Hide the buttons that save where nothing can be changed."""
        buttons = {} if self.editable_fields else {"show_save": False, "show_save_and_continue": False}
        return super().change_view(request, object_id, form_url, {**buttons, **(extra_context or {})})

    def delete_row(self, user: Any, row: Any) -> None:
        """The service that deletes the row with its objects; each subclass names its own."""
        raise NotImplementedError

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        shown = flatten_fieldsets(self.get_fieldsets(request, obj))
        return [name for name in shown if name not in self.editable_fields]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.model.objects.visible_to(request.user)
        return rows

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """What the question before a deletion lists. Parts (samples, epochs) are not listed, since there may be 100,000."""
        names = [f"{row} with all its parts and files in storage" for row in objs]
        return names, {str(self.opts.verbose_name_plural): len(names)}, set(), []

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        manifests.keep_up(form.instance)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """Nothing is logged yet: Django calls it before the deletion, which may be refused. See delete_model."""
        return []

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        # A deleted object loses its number; the copy keeps it.
        before: Any = [copy.copy(obj)]
        self.delete_row(request.user, obj)
        super().log_deletions(request, before)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        rows, refused = list(queryset), []
        for row in rows:
            try:
                self.delete_model(request, row)
            except MedSegError as error:
                refused.append(f"{row}: {error.detail}")
        if refused:
            deleted = f"Deleted: {len(rows) - len(refused)} of {len(rows)}."
            raise MedSegError("refused", " ".join([*refused, deleted]))

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        try:
            # super().delete_view has a transaction, which would keep everybody from writing while storage is asked.
            within: Any = self
            answer: HttpResponse = within._delete_view(request, object_id, extra_context)
            return answer
        except MedSegError as error:
            self.message_user(request, error.detail, messages.ERROR)
            return redirect(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", object_id)

    @admin.action(description="Delete with all files", permissions=["delete"])
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> TemplateResponse | None:
        """Delete the rows that may go, and say of each other row why it stays."""
        try:
            return delete_after_question(self, request, queryset)
        except MedSegError as error:
            self.message_user(request, error.detail, messages.ERROR)
            return None

    def on_each(self, request: HttpRequest, rows: QuerySet[Any], done: str, service: Callable[[Any], object]) -> None:
        """Call a service for every row. Say how many succeeded, and why each other one was refused."""
        count = 0
        for row in rows:
            try:
                service(row)
                count += 1
            except MedSegError as error:
                self.message_user(request, f"{row}: {error.detail}", messages.ERROR)
        if count:
            self.message_user(request, f"{done}: {count}.", messages.SUCCESS)

    @admin.display(description="timeline")
    def timeline_entries(self, row: Any) -> str:
        return json_block(row.timeline)

    @admin.display(description="log")
    def last_lines(self, row: Any) -> str:
        lines = row.log.splitlines()
        if not lines:
            return "–"
        return _folded(count_of(len(lines), "line"), row.log)

    @admin.display(description="on the pages")
    def page(self, row: Any) -> str:
        return link(row.get_absolute_url(), "open")


class ReadOnlyAdmin(ModelAdmin):
    """Rows that belong to another row. They can be looked at only."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def link(url: str, text: Any) -> str:
    return format_html('<a href="{}">{}</a>', url, text)


def picture(url: str, size: int = 56) -> str:
    style = "object-fit: contain; background: #000; border-radius: 4px"
    return format_html('<img src="{}" alt="" loading="lazy" width="{}" height="{}" style="{}">', url, size, size, style)


def json_block(value: Any) -> str:
    """A column of JSON, folded."""
    if not value:
        return "–"
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return _folded(count_of(len(value), "entry", "entries"), text[:200_000])


def _folded(summary: str, text: str) -> str:
    return format_html("<details><summary>{}</summary><pre>{}</pre></details>", summary, text)
