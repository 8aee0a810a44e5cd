"""manage.py verify_storage: compare rows, objects and manifests with one another."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from medseg_site.shared.base.text import count_of
from medseg_site.shared.catalogue.declarations import stored_models
from medseg_site.shared.recovery.verify import verify


class Command(BaseCommand):
    help = (
        "Checks every object against its checksum, every row against its objects and every manifest against its row. "
        "Ends with 1 when something is wrong."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--quick", action="store_true", help="Only check that objects exist and are not empty. None is read."
        )
        parser.add_argument("--repair", action="store_true", help="Write missing and outdated manifests again.")
        parser.add_argument("--json", action="store_true", help="Print the report as JSON on standard output.")

    def handle(self, *args: Any, quick: bool, repair: bool, **options: Any) -> None:
        total = sum(model._default_manager.count() for model in stored_models())
        with tqdm(total=total, unit=" rows", disable=not sys.stderr.isatty()) as bar:

            def on_step(table: str, rows: int) -> None:
                bar.set_description(table)
                bar.update(rows)

            report = verify(quick=quick, repair=repair, on_step=on_step)
        if options["json"]:
            self.stdout.write(json.dumps(report.to_dict(), indent=1))
        else:
            for problem in report.problems:
                end = "Mended." if problem.mended else problem.cure
                self.stdout.write(f"{problem.key} ({problem.table} {problem.row}): {problem.detail} {end}")
            self.stdout.write(
                f"{count_of(report.rows, 'row')}, {count_of(report.objects, 'object')}, "
                f"{report.bytes_read / 2**20:.1f} MB read; "
                f"{count_of(len(report.open_problems), 'problem')}, "
                f"{len(report.problems) - len(report.open_problems)} mended; "
                f"{count_of(report.orphans, 'object')} of no row ({report.orphan_bytes / 2**20:.1f} MB)."
            )
        if report.open_problems:
            raise CommandError(f"{count_of(len(report.open_problems), 'problem')} left.")
