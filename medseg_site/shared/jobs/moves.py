"""Database triggers that refuse every illegal change of a status, whoever makes it.

They are created after every `migrate`, not by a migration, because SQLite drops the triggers of a table when a later
migration rebuilds that table.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import connections

from medseg_site.shared.jobs.row import Job, JobWords


def moves(words: JobWords) -> set[tuple[str, str]]:
    """Return (from, to) of every legal change of the status. A row that is done stays done."""
    ended = [word for word in (words.failed, words.cancelled) if word]
    found = {(words.queued, words.working), (words.working, words.queued), (words.working, words.done)}
    found |= {(words.working, word) for word in ended} | {(word, words.queued) for word in ended}
    if words.cancelled:
        found.add((words.queued, words.cancelled))
    return found


def install(using: str = "default", **kwargs: Any) -> None:
    """Create the triggers of all job tables. Django calls it after `migrate`, by the signal post_migrate."""
    connection = connections[using]
    make = {"sqlite": _sqlite, "postgresql": _postgresql}.get(connection.vendor)
    if make is None:
        return
    with connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor))
        for model in apps.get_models():
            if issubclass(model, Job) and model._meta.db_table in tables:
                for statement in make(model._meta.db_table, _condition(model.WORDS)):
                    cursor.execute(statement)


def _condition(words: JobWords) -> str:
    legal = " OR ".join(f"(OLD.status = '{old}' AND NEW.status = '{new}')" for old, new in sorted(moves(words)))
    return f"OLD.status <> NEW.status AND NOT ({legal})"


def _sqlite(table: str, condition: str) -> list[str]:
    return [
        f"DROP TRIGGER IF EXISTS {table}_legal_moves",
        f"CREATE TRIGGER {table}_legal_moves BEFORE UPDATE OF status ON {table} FOR EACH ROW WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, 'illegal move of a row of {table}'); END",
    ]


def _postgresql(table: str, condition: str) -> list[str]:
    return [
        "CREATE OR REPLACE FUNCTION medseg_illegal_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        "'illegal move of a row of %: % to %', TG_TABLE_NAME, OLD.status, NEW.status USING ERRCODE = 'check_violation'; END $$",
        f"DROP TRIGGER IF EXISTS {table}_legal_moves ON {table}",
        f"CREATE TRIGGER {table}_legal_moves BEFORE UPDATE OF status ON {table} FOR EACH ROW WHEN ({condition}) "
        "EXECUTE FUNCTION medseg_illegal_move()",
    ]
