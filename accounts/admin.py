"""Admin pages of projects, their members and the audit. Nothing can be changed there."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import has_all_rights, projects_of, visible_to
from accounts.models import AuditEvent, Membership, Project
from medseg_site.shared.web.admin import ReadOnlyAdmin, TabularInline


class MembershipInline(TabularInline):
    model = Membership
    fields = ("user", "role")
    extra = 0


@admin.register(Project)
class ProjectAdmin(ReadOnlyAdmin):
    list_display = ("name", "personal_of", "created_at")
    search_fields = ("name", "uuid", "personal_of__username")
    fields = ("name", "personal_of", "created_at", "uuid")
    readonly_fields = fields
    list_select_related = ("personal_of",)
    inlines = (MembershipInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)
        return rows if has_all_rights(request.user) else rows.filter(pk__in=projects_of(request.user))


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "user_name", "action", "object_kind", "object_name", "project", "address")
    list_filter = ("action", "object_kind", "at")
    search_fields = ("user_name", "object_name", "object_uuid")
    date_hierarchy = "at"
    fields = ("at", "user", "user_name", "action", "object_kind", "object_uuid", "object_name", "project", "address")
    list_per_page = 100
    list_select_related = ("project",)
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return visible_to(super().get_queryset(request), request.user)
