"""manage.py collect_garbage: list and delete objects that no row owns."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from medseg_site.shared.base.text import count_of
from medseg_site.shared.recovery.sweep import MIN_HOURS, collect
from medseg_site.shared.storage.objects import ObjectInfo


class Command(BaseCommand):
    help = "Lists objects in storage that no row owns, and deletes them with --delete."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--delete", action="store_true", help="Delete the objects. By default nothing is changed.")
        text = f"Keep younger objects, because an upload may be in progress (default {MIN_HOURS:g})."
        parser.add_argument("--older-than-hours", type=float, default=MIN_HOURS, metavar="N", help=text)

    def handle(self, *args: Any, delete: bool, older_than_hours: float, **options: Any) -> None:
        if not older_than_hours >= 0:
            raise CommandError(f"--older-than-hours {older_than_hours:g} cannot be used. Give a number of 0 or more.")
        with tqdm(unit=" owners", disable=not sys.stderr.isatty()) as bar:

            def on_step(collection: str, owners: int) -> None:
                bar.set_description(collection)
                bar.update(owners)

            def on_object(item: ObjectInfo) -> None:
                bar.write(f"{item.key} ({count_of(item.size, 'byte')})", file=self.stdout)

            report = collect(delete=delete, older_than_hours=older_than_hours, on_object=on_object, on_step=on_step)
        what = "Deleted" if delete else "Would delete (--delete does it)"
        self.stdout.write(
            f"{what}: {count_of(report.count, 'object')}, {report.bytes / 2**20:.1f} MB. "
            f"Kept because they are younger than {older_than_hours:g} h: {report.too_young}."
        )
        if report.unknown:
            self.stdout.write(f"Kept because this program does not make such objects: {', '.join(report.unknown)}")
