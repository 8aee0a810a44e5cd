"""manage.py rebuild_catalog: the database again from storage alone."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from medseg_site.shared.recovery.rebuild import Remark, rebuild


class Command(BaseCommand):
    help = (
        "Restores the rows of datasets, models, batches and inferences from the manifests beside their objects. Run it after "
        "`migrate` on an empty database, or on one that lost rows. What is there already stays as it is."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be restored.")

    def handle(self, *args: Any, dry_run: bool, **options: Any) -> None:
        with tqdm(unit=" manifests", disable=not sys.stderr.isatty()) as bar:

            def on_step(table: str) -> None:
                bar.set_description(table)
                bar.update()

            report = rebuild(dry_run=dry_run, on_step=on_step)
        would = "would be " if dry_run else ""
        for table in sorted({*report.restored, *report.present}):
            line = f"{table}: {would}restored {report.restored[table]}, already there {report.present[table]}"
            if report.queued[table]:
                line += f"; {report.queued[table]} of the restored go on"
            self.stdout.write(line)
        self._list("Not as it was", report.notes)
        self._list("Skipped", report.skipped)
        if not report.restored and not report.present:
            self.stdout.write("There is no manifest in storage.")
        if report.skipped:
            raise CommandError(f"{len(report.skipped)} could not be restored; the reasons are above.")

    def _list(self, title: str, remarks: list[Remark]) -> None:
        for remark in remarks:
            self.stdout.write(f"{title}: {remark.prefix}: {remark.reason}. {remark.cure}")
