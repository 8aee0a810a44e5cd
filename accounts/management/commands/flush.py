"""manage.py flush: Django's own, which on SQLite deletes row by row and would be stopped by the guard of audit events."""

from __future__ import annotations

from typing import Any

from django.core.management.commands.flush import Command as Flush

from accounts import append_only


class Command(Flush):
    def handle(self, **options: Any) -> None:
        append_only.remove(options["database"])
        try:
            super().handle(**options)
        finally:
            append_only.install(options["database"])
