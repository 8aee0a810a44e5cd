"""manage.py flush: Django's own command, run without the triggers on audit events.

On SQLite it deletes row by row, which the triggers would refuse.
"""

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
