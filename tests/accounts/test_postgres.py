"""Postgres guards the audit as SQLite does."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import psycopg
import pytest

from tests.e2e.test_postgres import database_url  # noqa: F401 (a fixture)
from tests.environment import REPOSITORY

pytestmark = pytest.mark.postgres

EVENT = """INSERT INTO audit_events (at, user_id, user_name, action, object_kind, object_uuid, object_name, address)
    VALUES (now(), 1, 'anna', 'upload', 'dataset', %s, 'cells', '')"""
ANNA = """INSERT INTO auth_user (id, username, password, first_name, last_name, email, is_superuser, is_staff, is_active,
    date_joined) VALUES (1, 'anna', '!', '', '', '', false, false, true, now())"""


def test_an_event_loses_its_user_and_nothing_else(database_url: str, tmp_path: Path) -> None:  # noqa: F811 (a fixture)
    environment = {**os.environ, "DATABASE_URL": database_url, "MEDSEG_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "manage.py", "migrate", "-v0"]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=300)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(ANNA)
        connection.execute(EVENT, [uuid.uuid4()])
        refused = [
            "UPDATE audit_events SET user_name = 'bert'",
            "UPDATE audit_events SET user_id = NULL, action = 'delete'",
            "DELETE FROM audit_events",
        ]
        for statement in refused:
            with pytest.raises(psycopg.errors.CheckViolation, match="never changed"):
                connection.execute(statement)
        connection.execute("UPDATE audit_events SET user_id = NULL")
        assert connection.execute("SELECT user_id, user_name, action FROM audit_events").fetchall() == [
            (None, "anna", "upload")
        ]
