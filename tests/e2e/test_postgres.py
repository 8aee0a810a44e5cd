"""The same way through with the tables in Postgres: a temporary server of our own, ended with the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.e2e.walk import delete_all, walk
from tests.environment import SYSTEM_TMP, free_port
from tests.platform import Platform, running_platform

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]

ACCOUNT = "postgres"


def program(name: str) -> str | None:
    """Debian keeps the server's programs off the PATH, a folder for each version."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(versions[-1]) if versions else shutil.which(name)


def as_server(*command: str) -> None:
    """Run as the account that may run Postgres: itself refuses to run as root."""
    prefix = ["runuser", "-u", ACCOUNT, "--"] if os.geteuid() == 0 else []
    done = subprocess.run([*prefix, *command], cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if not initdb or not pg_ctl:
        pytest.skip("Postgres is not installed here: no initdb in /usr/lib/postgresql/*/bin or on the PATH")
    folder = Path(tempfile.mkdtemp(prefix="medseg-postgres-", dir=SYSTEM_TMP))
    data, port = str(folder / "data"), free_port()
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, ACCOUNT)
        as_server(
            initdb, "--pgdata", data, "--username", "medseg", "--auth", "trust", "--encoding", "UTF8", "--no-sync"
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        as_server(pg_ctl, "start", "--wait", "-D", data, "-l", str(folder / "log.txt"), "-o", options)
        try:
            yield f"postgres://medseg@127.0.0.1:{port}/postgres"
        finally:
            as_server(pg_ctl, "stop", "--wait", "-D", data, "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def platform(database_url: str) -> Iterator[Platform]:
    with running_platform(DATABASE_URL=database_url) as platform:
        yield platform


def test_all_rows_are_in_postgres_until_they_are_deleted(platform: Platform, database_url: str) -> None:
    walked = walk(platform)
    assert not list(platform.folder.glob("*.sqlite3*")), "there is an SQLite file as well"

    def count(table: str) -> int:
        with psycopg.connect(database_url) as connection:
            row = connection.execute(psycopg.sql.SQL("SELECT COUNT(*) FROM {}").format(psycopg.sql.Identifier(table)))
            found = row.fetchone()
            assert found
            return int(found[0])

    tables = ("datasets", "samples", "classes", "models", "epochs", "inference_results")
    assert [count(table) for table in tables] == [1, 5, 2, 1, 2, 1]
    with psycopg.connect(database_url) as connection:
        query = "SELECT name, status, s3_key FROM models WHERE dataset_id = %s"
        assert connection.execute(query, [walked.dataset["id"]]).fetchall() == [
            ("Discs", "completed", walked.model["s3_key"])
        ]
    delete_all(platform, walked)
    assert [count(table) for table in tables] == [0] * len(tables)
    assert platform.media() == set()
