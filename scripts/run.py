"""Runs the whole platform on this machine until Ctrl-C. supervisor starts the processes of the Procfile.

Reads these environment variables: PORT (8000), MEDSEG_HOST (127.0.0.1), MEDSEG_DATA_DIR (./var), MEDSEG_REDIS_PORT
(PORT + 8379), REDIS_URL (if it is set, no Redis is started) and MEDSEG_QUEUES (the queues that this machine's workers
take from; `none` starts no workers).

`--demo` also makes the synthetic demo. If a platform runs on this data folder already, the demo is made there.
`--worker` starts only the workers of MEDSEG_QUEUES, for a platform whose web process runs on another machine.

Every process has MEDSEG_RUN_DIR=<data folder> in its environment. By this variable the next start finds and ends the
processes that a killed platform left behind.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

ROOT = Path(__file__).resolve().parent.parent
# The port of Redis is this much above PORT, or below it if it would leave the range. medseg_site/settings.py computes
# the same.
REDIS_PORT_OFFSET = 8379
READY_SECONDS = 120
QUEUES = ("ingest", "infer", "train", "housekeeping")
# The settings that all machines of a platform must share → why a worker on another machine needs them.
SHARED = {
    "DATABASE_URL": "an SQLite file cannot be shared; give the platform's Postgres (postgres://user:password@host/name)",
    "REDIS_URL": "messages and live events go over the platform's own Redis; give its address (redis://host:6379/0)",
    "S3_BUCKET_NAME": "a local folder cannot be shared; give the platform's bucket (and AWS_ENDPOINT_URL, credentials)",
    "SECRET_KEY": "it salts the hashes that keep one patient's images together; give the same one as on the web machine",
}
# A process that ended this often while starting is given up.
CRASHES = 3
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PROGRAM = """
[program:{name}]
command=sh -c {command}
autorestart=true
startsecs=5
startretries=1000
stopsignal={signal}
stopwaitsecs=8
killasgroup=true
redirect_stderr=true
stdout_logfile=logs/{name}.log
stdout_logfile_maxbytes=5MB
stdout_logfile_backups=3
"""


class Stop(BaseException):
    """Raised in the main thread by Ctrl-C or SIGTERM."""


def stop_on_signal(number: int, frame: object) -> NoReturn:
    # Further signals would only interrupt the clean-up, which takes a limited time anyway.
    ignore_signals()
    raise Stop


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent dies. This works on Linux; elsewhere the next start cleans up."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def setting(name: str, default: object) -> str:
    """The value of an environment variable, or the default if it is missing or blank."""
    return os.environ.get(name, "").strip() or str(default)


def port(name: str, default: int) -> int:
    """The port in an environment variable. Ends the program if it is not a port."""
    text = setting(name, default)
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        sys.exit(f"{name}={text} is not a port. Set {name} to a number from 1 to 65535.")
    return int(text)


def own_address(host: str) -> str:
    """The address by which this machine reaches a server that listens on `host`."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{address}]" if ":" in address else address


def environment() -> dict[str, str]:
    """The environment of every process of the platform."""
    data = str(Path(setting("MEDSEG_DATA_DIR", ROOT / "var")).expanduser().resolve())
    host, web_port = setting("MEDSEG_HOST", "127.0.0.1"), port("PORT", 8000)
    env = {**os.environ, "MEDSEG_HOST": host, "PORT": str(web_port), "PYTHONUNBUFFERED": "1"}
    # Waiting threads of PyTorch must not spin for long, because all processes share the cores (ml_core/memory.py).
    env.setdefault("GOMP_SPINCOUNT", "5000")
    env |= {"MEDSEG_DATA_DIR": data, "MEDSEG_RUN_DIR": data, "MEDSEG_ROOT": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    if not setting("REDIS_URL", ""):
        offset = REDIS_PORT_OFFSET if web_port + REDIS_PORT_OFFSET <= 65535 else -REDIS_PORT_OFFSET
        env["MEDSEG_REDIS_PORT"] = str(port("MEDSEG_REDIS_PORT", web_port + offset))
        env.pop("REDIS_URL", None)
    # This launcher asks /readyz as any client does, so the host name that it uses must be allowed.
    env["ALLOWED_HOSTS"] = f"{setting('ALLOWED_HOSTS', 'localhost,127.0.0.1,[::1]')},{own_address(host)}"
    return env


def end(processes: list[psutil.Process], grace: float) -> None:
    """Terminate the processes, and kill those that are still alive after `grace` seconds."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def end_all(data: Path) -> None:
    """End every process of this data folder's platform. The supervisor is ended first, because it ends the others."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    # This is repeated, because a supervisor may start another process just before it ends.
    for _ in range(3):
        supervisors: list[psutil.Process] = []
        others: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                # Redis overwrites its environment with its title, so its current folder tells whose it is.
                is_redis = process.name().startswith("redis-server") and process.cwd() == str(data / "redis")
                ours = is_redis or process.environ().get("MEDSEG_RUN_DIR") == str(data)
                if ours and process.pid not in spared:
                    is_supervisor = "supervisor.supervisord" in process.cmdline()
                    (supervisors if is_supervisor else others).append(process)
        if supervisors:
            end(supervisors, grace=15)
        elif others:
            end(others, grace=3)
        else:
            return


def require_free(host: str, number: int, name: str) -> None:
    """End the program if a port is taken. name: the variable that sets the port."""
    family, kind, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            cure = f"Choose another port: `make run {name}={number + 10}`."
            sys.exit(f"Cannot listen on port {number} of {host}: {error.strerror}. {cure}")


def wanted_queues() -> list[str]:
    """The queues that this machine's workers take from. Ends the program for an unknown one."""
    text = setting("MEDSEG_QUEUES", ",".join(QUEUES))
    queues = [word.strip() for word in text.split(",") if word.strip() and word.strip() != "none"]
    if unknown := [word for word in queues if word not in QUEUES]:
        choices = f"Choose from {', '.join(QUEUES)}, or `none`."
        sys.exit(f"MEDSEG_QUEUES names {', '.join(unknown)}, but there is no such queue. {choices}")
    return queues


def require_shared(env: dict[str, str]) -> None:
    """End the program if a worker on another machine could not reach the platform's database, Redis or bucket."""
    is_sqlite = env.get("DATABASE_URL", "").startswith("sqlite")
    missing = [name for name in SHARED if not env.get(name, "").strip() or (name == "DATABASE_URL" and is_sqlite)]
    if missing:
        lines = [f"  {name}: {SHARED[name]}." for name in missing]
        sys.exit(
            "\n".join(["A worker on another machine needs these variables, with the web machine's values:", *lines])
        )
    if subprocess.run([sys.executable, "manage.py", "services"], cwd=ROOT, env=env).returncode:
        sys.exit(
            "The worker was not started, because a service that it needs does not answer. The lines above name it."
        )
    if subprocess.run([sys.executable, "manage.py", "migrate", "--check", "-v0"], cwd=ROOT, env=env).returncode:
        sys.exit("The database has the tables of another version. Start the same version on the web machine first.")


def programs(queues: list[str], *, with_redis: bool, is_worker: bool) -> dict[str, str]:
    """The processes of the Procfile that belong on this machine: name → command."""
    commands = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    if not with_redis:
        del commands["redis"]
    for name in [name for name, command in commands.items() if " worker " in command]:
        command = commands.pop(name)
        # Workers on one machine need different names.
        if is_worker:
            command = command.replace("$PORT@", f"{os.getpid()}@")
        if name in queues:
            commands[name] = command if "housekeeping" in queues else command.replace(",housekeeping", "")
        elif name == "ingest" and "housekeeping" in queues and "infer" not in queues:
            commands["housekeeping"] = command.replace("ingest,", "").replace("ingest-", "housekeeping-")
    return {name: command for name, command in commands.items() if " worker " in command or not is_worker}


def supervisor_config(commands: dict[str, str]) -> str:
    """The configuration of supervisord. It runs in the data folder, so no path with an odd character is needed."""
    config = "[supervisord]\nnodaemon=true\nsilent=true\n"
    config += "logfile=logs/supervisord.log\npidfile=supervisord.pid\n"
    names = list(commands)
    for name, command in commands.items():
        # QUIT is Celery's cold shutdown. It gives running work back instead of waiting for a training to end. It is
        # sent only to the worker, which ends its children. After stopwaitsecs all of them are killed.
        stop = "QUIT" if " worker " in command else "TERM"
        quoted = shlex.quote(f'cd "$MEDSEG_ROOT" && exec {command}').replace("%", "%%")
        config += PROGRAM.format(name=name, command=quoted, signal=stop)
    # Groups stop one after the other, the last one first. Redis is in the first group, because the others need it.
    if "redis" in commands:
        config += "\n[group:broker]\nprograms=redis\npriority=1\n"
        names.remove("redis")
    return f"{config}\n[group:platform]\nprograms={','.join(names)}\npriority=2\n"


def readyz(url: str) -> str | None:
    """None if the platform is ready, otherwise its answer."""
    try:
        # No proxy is used, because the platform runs on this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}readyz", timeout=10):
            return None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code} {error.read(500).decode(errors='replace')}"
    except OSError as error:
        return f"no answer ({error})"


def workers_ready(names: list[str], logs: Path) -> str | None:
    """None if the log of each worker says that it is ready, otherwise which workers are not."""
    waiting = [name for name in names if " ready.\n" not in text_of(logs / f"{name}.log")]
    return f"not ready: {', '.join(waiting)}" if waiting else None


def text_of(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def wait_until_ready(
    supervisor: subprocess.Popen[bytes], what_is_missing: Callable[[], str | None], logs: Path
) -> None:
    """Wait until `what_is_missing` returns None. If a process crashes or time is up, print logs and end the program."""
    deadline = time.monotonic() + READY_SECONDS
    while (answer := what_is_missing()) is not None:
        ended = Counter(re.findall(r"exited: (\S+) \(", text_of(logs / "supervisord.log")))
        crashing = [name for name, times in ended.items() if times >= CRASHES]
        if crashing or supervisor.poll() is not None or time.monotonic() > deadline:
            for name in crashing or [*ended, "web", "supervisord"]:
                lines = text_of(logs / f"{name}.log").splitlines()[-30:]
                print(f"--- the end of {logs / name}.log", *lines, sep="\n", file=sys.stderr)
            sys.exit(f"The platform did not come up: {answer}. The logs above say more.")
        time.sleep(0.25)


def make_demo(env: dict[str, str]) -> int:
    return subprocess.run([sys.executable, "manage.py", "seed_demo"], cwd=ROOT, env=env).returncode


def prepare(env: dict[str, str], with_redis: bool) -> None:
    """Check that the ports are free, and bring the database up to date."""
    require_free(env["MEDSEG_HOST"], int(env["PORT"]), "PORT")
    if with_redis:
        require_free("127.0.0.1", int(env["MEDSEG_REDIS_PORT"]), "MEDSEG_REDIS_PORT")
    if subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=env).returncode:
        sys.exit("The database could not be prepared. The error is above.")


def start(env: dict[str, str], *, demo: bool, is_worker: bool) -> NoReturn:
    """Start all processes and wait until the supervisor ends. The caller must hold the lock of the data folder."""
    data, queues = Path(env["MEDSEG_DATA_DIR"]), wanted_queues()
    logs, config, with_redis = data / "logs", data / "supervisord.conf", "REDIS_URL" not in env
    if is_worker:
        require_shared(env)
        if not queues:
            sys.exit("With MEDSEG_QUEUES=none a worker has nothing to do. Name at least one queue.")
    end_all(data)
    if not is_worker:
        prepare(env, with_redis)
    logs.mkdir(exist_ok=True)
    commands = programs(queues, with_redis=with_redis, is_worker=is_worker)
    # These logs are searched for signs of readiness and crashes, so lines of an earlier start must go.
    for name in ["supervisord", *(commands if is_worker else [])]:
        (logs / f"{name}.log").unlink(missing_ok=True)
    config.write_text(supervisor_config(commands))
    command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(config)]
    # The supervisor gets its own session, so that Ctrl-C in the terminal reaches only this launcher, which stops the
    # processes in order.
    supervisor = subprocess.Popen(
        command,
        cwd=data,
        env=env,
        stdin=subprocess.DEVNULL,
        # On a full disk supervisord prints a traceback because it cannot write its log. It would end if the traceback
        # could not be written either.
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    url = f"http://{own_address(env['MEDSEG_HOST'])}:{env['PORT']}/"
    shown = logs.relative_to(ROOT) if logs.is_relative_to(ROOT) else logs
    if is_worker:
        wait_until_ready(supervisor, lambda: workers_ready(list(commands), logs), logs)
        print(f"The worker is ready: {', '.join(queues)}  (Ctrl-C stops it; logs in {shown})", flush=True)
    else:
        wait_until_ready(supervisor, lambda: readyz(url), logs)
        print(f"MedSeg is ready: {url}  (Ctrl-C stops it; logs in {shown})", flush=True)
    if demo and make_demo(env):
        print("The demo could not be made. The error is above. The platform keeps running.", flush=True)
    code = supervisor.wait()
    sys.exit(f"The supervisor ended unexpectedly (code {code}). See {shown}/supervisord.log, then start again.")


def main() -> int:
    if "MAKELEVEL" in os.environ:
        die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_on_signal)
    # Shells start background jobs with SIGQUIT ignored, and the workers would inherit that.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    env, demo, is_worker = environment(), "--demo" in sys.argv, "--worker" in sys.argv
    data = Path(env["MEDSEG_DATA_DIR"])
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data / "run.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            ports = lock.read()
            if demo and ports:
                return make_demo({**env, **json.loads(ports)})
            where = f" (port {json.loads(ports)['PORT']})" if ports else ""
            sys.exit(f"A platform runs on {data} already{where}. Stop it, or choose another MEDSEG_DATA_DIR.")
        lock.truncate(0)
        json.dump({name: env[name] for name in ("PORT", "MEDSEG_REDIS_PORT") if name in env}, lock)
        lock.flush()
        try:
            start(env, demo=demo, is_worker=is_worker)
        finally:
            ignore_signals()
            end_all(data)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Stop:
        print("\nMedSeg has stopped.", flush=True)
