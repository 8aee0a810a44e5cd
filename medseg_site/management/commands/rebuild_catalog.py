"""manage.py rebuild_catalog: restore the database from storage alone."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from medseg_site.shared.base.text import count_of
from medseg_site.shared.recovery.rebuild import Remark, rebuild


class Command(BaseCommand):
    help = (
        "Restores the rows of datasets, models, batches and inferences from the manifests beside their objects. Run it "
        "after `migrate` on an empty database, or on one that lost rows. Rows that exist already stay as they are."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only print what would be restored.")

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
                line += f"; {report.queued[table]} restored to the queue"
            self.stdout.write(line)
        self._list("Not as it was", report.notes)
        self._list("Skipped", report.skipped)
        if not report.restored and not report.present:
            self.stdout.write("There is no manifest in storage.")
        if report.skipped:
            count = count_of(len(report.skipped), "manifest")
            raise CommandError(f"{count} could not be restored. The reasons are above.")

    def _list(self, title: str, remarks: list[Remark]) -> None:
        for remark in remarks:
            self.stdout.write(f"{title}: {remark.prefix}: {remark.reason}. {remark.cure}")
