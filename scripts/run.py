"""Run the whole platform on this machine: the Procfile's processes under supervisor, until Ctrl-C.

Reads PORT (8000), MEDSEG_HOST (127.0.0.1), MEDSEG_DATA_DIR (./var), MEDSEG_REDIS_PORT (PORT + 8379),
REDIS_URL (when it is set, no Redis is started) and MEDSEG_QUEUES (the queues that workers of this machine take;
`none`: no workers here). `--demo` also makes the synthetic demo, here or on the platform that runs on this data
folder already. `--worker` starts the workers of MEDSEG_QUEUES only, for a platform whose web process is elsewhere.
Every process carries MEDSEG_RUN_DIR=<data folder> in its environment: by that the next start finds and ends what a
killed one left behind.
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
REDIS_PORT_OFFSET = 8379  # downwards where it would leave the range; medseg_site/settings.py computes the same
READY_SECONDS = 120
QUEUES = ("ingest", "infer", "train", "housekeeping")
# What all machines of one platform must share, and why a worker of its own machine cannot do without it.
SHARED = {
    "DATABASE_URL": "an SQLite file cannot be shared; give the platform's Postgres (postgres://user:password@host/name)",
    "REDIS_URL": "messages and live events go over the platform's own Redis; give its address (redis://host:6379/0)",
    "S3_BUCKET_NAME": "a local folder cannot be shared; give the platform's bucket (and AWS_ENDPOINT_URL, credentials)",
    "SECRET_KEY": "it salts the hashes that keep one patient's images together; give the same one as on the web machine",
}
CRASHES = 3  # a process that ended this often while starting will not come up
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
    """Ctrl-C or SIGTERM."""


def stop_on_signal(number: int, frame: object) -> NoReturn:
    ignore_signals()  # one is enough: the end is bounded in time
    raise Stop


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent dies (Linux; elsewhere the next start cleans up)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def setting(name: str, default: object) -> str:
    return os.environ.get(name, "").strip() or str(default)


def port(name: str, default: int) -> int:
    text = setting(name, default)
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        sys.exit(f"{name}={text} is not a port. Set {name} to a number from 1 to 65535.")
    return int(text)


def own_address(host: str) -> str:
    """How this machine reaches a server that listens on `host`."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{address}]" if ":" in address else address


def environment() -> dict[str, str]:
    """What every process of the platform gets."""
    data = str(Path(setting("MEDSEG_DATA_DIR", ROOT / "var")).expanduser().resolve())
    host, web_port = setting("MEDSEG_HOST", "127.0.0.1"), port("PORT", 8000)
    env = {**os.environ, "MEDSEG_HOST": host, "PORT": str(web_port), "PYTHONUNBUFFERED": "1"}
    # Threads of PyTorch that wait do not spin for long: all processes share the cores (ml_core/memory.py).
    env.setdefault("GOMP_SPINCOUNT", "5000")
    env |= {"MEDSEG_DATA_DIR": data, "MEDSEG_RUN_DIR": data, "MEDSEG_ROOT": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    if not setting("REDIS_URL", ""):
        offset = REDIS_PORT_OFFSET if web_port + REDIS_PORT_OFFSET <= 65535 else -REDIS_PORT_OFFSET
        env["MEDSEG_REDIS_PORT"] = str(port("MEDSEG_REDIS_PORT", web_port + offset))
        env.pop("REDIS_URL", None)
    # This launcher asks /readyz as any client does, so its own way in must be allowed.
    env["ALLOWED_HOSTS"] = f"{setting('ALLOWED_HOSTS', 'localhost,127.0.0.1,[::1]')},{own_address(host)}"
    return env


def end(processes: list[psutil.Process], grace: float) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def end_all(data: Path) -> None:
    """End every process of this data folder's platform, its supervisor (which ends the others) first."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for _ in range(3):  # a supervisor in its last moments may still have started something
        supervisors: list[psutil.Process] = []
        others: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                # Redis writes its title over its own environment; the folder it stands in tells whose it is.
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
    family, kind, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            cure = f"Choose another port: `make run {name}={number + 10}`."
            sys.exit(f"Cannot listen on port {number} of {host}: {error.strerror}. {cure}")


def wanted_queues() -> list[str]:
    text = setting("MEDSEG_QUEUES", ",".join(QUEUES))
    queues = [word.strip() for word in text.split(",") if word.strip() and word.strip() != "none"]
    if unknown := [word for word in queues if word not in QUEUES]:
        sys.exit(f"MEDSEG_QUEUES names {', '.join(unknown)}. There are {', '.join(QUEUES)}, and `none`.")
    return queues


def require_shared(env: dict[str, str]) -> None:
    """A worker on its own machine works with what all machines reach, or not at all."""
    is_sqlite = env.get("DATABASE_URL", "").startswith("sqlite")
    missing = [name for name in SHARED if not env.get(name, "").strip() or (name == "DATABASE_URL" and is_sqlite)]
    if missing:
        lines = [f"  {name}: {SHARED[name]}." for name in missing]
        sys.exit(
            "\n".join(["A worker on another machine needs these variables, with the web machine's values:", *lines])
        )
    if subprocess.run([sys.executable, "manage.py", "services"], cwd=ROOT, env=env).returncode:
        sys.exit("The worker was not started: what it needs does not answer (above).")
    if subprocess.run([sys.executable, "manage.py", "migrate", "--check", "-v0"], cwd=ROOT, env=env).returncode:
        sys.exit("The tables are not those of this version. Start the same version on the web machine first.")


def programs(queues: list[str], *, with_redis: bool, is_worker: bool) -> dict[str, str]:
    """Name → command of the Procfile's processes that belong on this machine."""
    found = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    if not with_redis:
        del found["redis"]
    for name in [name for name, command in found.items() if " worker " in command]:
        command = found.pop(name)
        if is_worker:  # several on one machine need names of their own
            command = command.replace("$PORT@", f"{os.getpid()}@")
        if name in queues:
            found[name] = command if "housekeeping" in queues else command.replace(",housekeeping", "")
        elif name == "ingest" and "housekeeping" in queues and "infer" not in queues:
            found["housekeeping"] = command.replace("ingest,", "").replace("ingest-", "housekeeping-")
    return {name: command for name, command in found.items() if " worker " in command or not is_worker}


def supervisor_config(commands: dict[str, str]) -> str:
    """The processes for supervisord, which runs in the data folder: no path with an odd character is in it."""
    config = "[supervisord]\nnodaemon=true\nsilent=true\n"
    config += "logfile=logs/supervisord.log\npidfile=supervisord.pid\n"
    names = list(commands)
    for name, command in commands.items():
        # QUIT is Celery's cold shutdown: it hands running work back instead of waiting for a training to end.
        # It goes to the worker alone, which ends its children; after stopwaitsecs all of them are killed.
        stop = "QUIT" if " worker " in command else "TERM"
        quoted = shlex.quote(f'cd "$MEDSEG_ROOT" && exec {command}').replace("%", "%%")
        config += PROGRAM.format(name=name, command=quoted, signal=stop)
    # Groups stop one after the other, the last first, each all at once: Redis goes when no one needs it.
    if "redis" in commands:
        config += "\n[group:broker]\nprograms=redis\npriority=1\n"
        names.remove("redis")
    return f"{config}\n[group:platform]\nprograms={','.join(names)}\npriority=2\n"


def readyz(url: str) -> str | None:
    """None when the platform is ready, else what it said. No proxy: it is this machine."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}readyz", timeout=10):
            return None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code} {error.read(500).decode(errors='replace')}"
    except OSError as error:
        return f"no answer ({error})"


def workers_ready(names: list[str], logs: Path) -> str | None:
    """None when each worker has said so in its log."""
    silent = [name for name in names if " ready.\n" not in text_of(logs / f"{name}.log")]
    return f"no word yet of {', '.join(silent)}" if silent else None


def text_of(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def wait_until_ready(
    supervisor: subprocess.Popen[bytes], what_is_missing: Callable[[], str | None], logs: Path
) -> None:
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
    require_free(env["MEDSEG_HOST"], int(env["PORT"]), "PORT")
    if with_redis:
        require_free("127.0.0.1", int(env["MEDSEG_REDIS_PORT"]), "MEDSEG_REDIS_PORT")
    if subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=env).returncode:
        sys.exit("The database could not be prepared; its own words are above.")


def start(env: dict[str, str], *, demo: bool, is_worker: bool) -> NoReturn:
    """Start all and stay until it ends. The caller holds the data folder's lock."""
    data, queues = Path(env["MEDSEG_DATA_DIR"]), wanted_queues()
    logs, config, with_redis = data / "logs", data / "supervisord.conf", "REDIS_URL" not in env
    if is_worker:
        require_shared(env)
        if not queues:
            sys.exit("MEDSEG_QUEUES=none leaves a worker nothing to do.")
    end_all(data)
    if not is_worker:
        prepare(env, with_redis)
    logs.mkdir(exist_ok=True)
    commands = programs(queues, with_redis=with_redis, is_worker=is_worker)
    for name in ["supervisord", *(commands if is_worker else [])]:  # what an earlier start said is not asked
        (logs / f"{name}.log").unlink(missing_ok=True)
    config.write_text(supervisor_config(commands))
    command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(config)]
    # A session of its own: Ctrl-C in the terminal reaches this launcher only, which then stops all in order.
    supervisor = subprocess.Popen(
        command,
        cwd=data,
        env=env,
        stdin=subprocess.DEVNULL,
        # Where its log finds no room it prints a traceback, and it ends where that finds none either: on a full disk.
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
        print("The demo could not be made; its own words are above. The platform runs on.", flush=True)
    code = supervisor.wait()
    sys.exit(f"The supervisor ended by itself (code {code}). See {shown}/supervisord.log, then start again.")


def main() -> int:
    if "MAKELEVEL" in os.environ:
        die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_on_signal)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # shells start background jobs with it ignored
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
