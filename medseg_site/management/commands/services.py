"""manage.py services: ask database, storage and broker whether they answer. The exit status is 1 when one does not."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand

from medseg_site.shared.web.health import answers


class Command(BaseCommand):
    help = "Asks database, storage and broker whether they answer this machine. Ends with 1 when one does not."

    def handle(self, *args: Any, **options: Any) -> None:
        parts = answers()
        failing = {name: answer for name, answer in parts.items() if answer != "ok"}
        for name, answer in failing.items():
            self.stderr.write(f"{name}: {answer}")
        if failing:
            sys.exit(1)
