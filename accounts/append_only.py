"""Database triggers that refuse to change or delete an audit event. They are made after every `migrate`.

One change is allowed: Django sets the id of a deleted user or project to null. A command that removes old events would
drop the triggers, delete the rows and make the triggers again in one transaction, so that no other connection ever sees
the table without them.
"""

from __future__ import annotations

from typing import Any

from django.db import connections

from accounts.models import AuditEvent

TABLE = AuditEvent._meta.db_table
FORGOTTEN = {"user_id", "project_id"}
TRIGGERS = {"UPDATE": f"{TABLE}_no_update", "DELETE": f"{TABLE}_no_delete"}
REASON = "audit events are never changed"


def install(using: str = "default", **kwargs: Any) -> None:
    """Make the triggers again. Django's signal post_migrate calls this."""
    connection = connections[using]
    make = {"sqlite": _sqlite, "postgresql": _postgresql}.get(connection.vendor)
    if make is None or TABLE not in connection.introspection.table_names():
        return
    remove(using)
    with connection.cursor() as cursor:
        for statement in make():
            cursor.execute(statement)


def remove(using: str = "default") -> None:
    """Drop the triggers. Until `install` is called, every change is allowed."""
    connection = connections[using]
    on_table = f" ON {TABLE}" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        for name in TRIGGERS.values():
            cursor.execute(f"DROP TRIGGER IF EXISTS {name}{on_table}")


def _changes(same: str) -> str:
    """The SQL condition that an UPDATE does more than set those ids to null.

    `same` is the operator that also finds two nulls equal.
    """
    conditions = []
    for column in (field.column for field in AuditEvent._meta.concrete_fields):
        is_same = f"NEW.{column} {same} OLD.{column}"
        conditions.append(f"({is_same} OR NEW.{column} IS NULL)" if column in FORGOTTEN else is_same)
    return f"NOT ({' AND '.join(conditions)})"


def _sqlite() -> list[str]:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{REASON}'); END"
    return [
        f"CREATE TRIGGER {TRIGGERS['UPDATE']} BEFORE UPDATE ON {TABLE} FOR EACH ROW WHEN {_changes('IS')} {refuse}",
        f"CREATE TRIGGER {TRIGGERS['DELETE']} BEFORE DELETE ON {TABLE} FOR EACH ROW {refuse}",
    ]


def _postgresql() -> list[str]:
    refuse = "EXECUTE FUNCTION medseg_append_only()"
    changes = _changes("IS NOT DISTINCT FROM")
    return [
        "CREATE OR REPLACE FUNCTION medseg_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        f"'{REASON}' USING ERRCODE = 'check_violation'; END $$",
        f"CREATE TRIGGER {TRIGGERS['UPDATE']} BEFORE UPDATE ON {TABLE} FOR EACH ROW WHEN ({changes}) {refuse}",
        f"CREATE TRIGGER {TRIGGERS['DELETE']} BEFORE DELETE ON {TABLE} FOR EACH ROW {refuse}",
    ]
