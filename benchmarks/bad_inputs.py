"""Sends bad inputs to a running platform and prints its answers as a Markdown table.

    MEDSEG_DATA_DIR=<its data folder> python benchmarks/bad_inputs.py http://127.0.0.1:8000

Everything that is made is deleted again. The exit code is 1 if an answer was not the right one, or if something was
left: a row, an object in storage, a temporary file, or a traceback in a log. Some inputs need a setting of the platform
(MEDSEG_MAX_UPLOAD_MB=1, MEDSEG_URL_IMPORT_ALLOW_PRIVATE=1). They are sent if this command has the same setting in its
environment.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bad_inputs_files as files  # noqa: E402 (needs the path above)
from benchmarks import bad_inputs_protocol as protocol  # noqa: E402 (needs the path above)
from benchmarks import bad_inputs_requests as requests  # noqa: E402 (needs the path above)
from benchmarks.bad_files import good_image, good_pairs, zipped  # noqa: E402 (needs the path above)
from benchmarks.bad_inputs_client import Answer, Case, HttpClient, Platform  # noqa: E402 (needs the path above)
from benchmarks.bad_inputs_site import bad_site  # noqa: E402 (needs the path above)

# The kinds of rows, in the order in which they can be deleted.
KINDS = ("inferences", "inference-batches", "models", "datasets")
OBJECTS = ("datasets", "models", "inferences", "batches")
HEAD = "| # | Kind | What was sent | HTTP | Final status | The answer's sentence |\n|--:|---|---|--:|---|---|"
SMALL = {"architecture": "unet", "encoder": "resnet18", "epochs": 1, "patch_size": 32, "time_budget_seconds": 10}


@functools.cache
def all_cases() -> list[Case]:
    """All bad inputs, in the order in which they are sent."""
    return [
        *files.archives(),
        *files.images(),
        *files.masks(),
        *files.batches(),
        *requests.urls(),
        *requests.hyperparameters(),
        *requests.bodies(),
        *requests.queries(),
        *protocol.headers(),
        *protocol.wrong_times(),
        *protocol.sockets(),
        *protocol.limits(),
    ]


class Watch:
    """Watches for rows, objects and tracebacks that were not there at the start."""

    def __init__(self, platform: Platform, data: Path) -> None:
        self.platform, self.data = platform, data
        self.rows, self.objects = self._rows(), self._objects()
        self.tracebacks = self._tracebacks()

    def _rows(self) -> set[tuple[str, int]]:
        pages = {kind: self.platform.get(f"{kind}/?page_size=500").body["results"] for kind in KINDS}
        return {(kind, row["id"]) for kind, rows in pages.items() for row in rows}

    def _objects(self) -> set[str]:
        media = self.data / "media"
        files = (path for kind in OBJECTS for path in (media / kind).rglob("*") if path.is_file())
        return {path.relative_to(media).as_posix() for path in files}

    def _tracebacks(self) -> int:
        logs = (self.data / "logs").glob("*.log")
        texts = [log.read_text(errors="replace") for log in logs]
        # Django logs a traceback for every unknown Host, which is not a fault.
        return sum(text.count("Traceback (most recent") - text.count("django.security.") for text in texts)

    def problems(self, case: Case, answer: Answer) -> Iterator[str]:
        """Yield what is wrong with an answer and with what it left. Deletes the rows that were made."""
        sentence = answer.sentence
        final = (answer.body or {}).get("status", "") if case.final and isinstance(answer.body, dict) else ""
        if answer.status not in case.status:
            yield f"HTTP {answer.status} instead of {' or '.join(map(str, case.status))}"
        if final != case.final:
            yield f"ended as {final!r} instead of {case.final!r}"
        if case.says.strip().lower() not in sentence.lower() or (case.says and not sentence):
            yield f"does not say {case.says!r}"
        if "unexpectedly" in sentence or "Traceback" in sentence or "Error(" in sentence:
            yield "does not say what to do"
        new = self._rows() - self.rows
        if new and not case.final and case.kind != "state":
            yield f"left the rows {sorted(new)}"
        # A row in error stays, because it tells why. So does its manifest, from which the row can be rebuilt.
        objects = {key for key in self._objects() - self.objects if not (new and key.endswith("/manifest.json"))}
        # The rows of a batch own the images that were unpacked from it.
        unpacked = isinstance(answer.body, dict) and answer.body.get("total")
        kept = {"ready": OBJECTS, "completed": OBJECTS, "failed": ("inferences",)}.get(case.final, ())
        wrong = [
            key
            for key in objects
            if (not unpacked and not key.startswith(kept)) or (final == "failed" and "/labels" in key)
        ]
        if wrong and case.kind != "state":
            yield f"left the objects {sorted(wrong)[:4]}"
        for kind in KINDS:
            for which, pk in new:
                if which == kind and (gone := self.platform.delete(f"{kind}/{pk}/").status) not in (204, 404):
                    yield f"deleting {kind}/{pk} answered {gone}"
        if left := self._objects() - self.objects:
            yield f"after deletion the objects {sorted(left)[:4]} are there"

    def at_the_end(self) -> Iterator[str]:
        """Yield what is wrong after all inputs: temporary files that are not removed in 10 s, and tracebacks."""
        deadline = time.monotonic() + 10
        while (left := list((self.data / "tmp").glob("*"))) and time.monotonic() < deadline:
            time.sleep(0.2)
        if left:
            yield f"temporary files left: {len(left)}, such as {left[0].name}"
        if more := self._tracebacks() - self.tracebacks:
            yield f"tracebacks logged: {more}"


def prepare(platform: Platform) -> None:
    """Make a good dataset, a model trained on it for a moment, and an inference."""
    made = platform.upload(zipped(good_pairs(4)), "good.zip", "good input")
    platform.dataset = made.body["id"]
    platform.model = platform.train(SMALL, name="good input").body["id"]
    while (state := platform.get(f"models/{platform.model}/").body)["status"] in ("queued", "training"):
        time.sleep(0.5)
    assert state["status"] == "completed", state
    platform.inference = platform.segment("a.png", good_image()).body["id"]


def clean(platform: Platform) -> None:
    """Delete what `prepare` made."""
    for path in (f"inferences/{platform.inference}/", f"models/{platform.model}/", f"datasets/{platform.dataset}/"):
        platform.delete(path)


def row(number: int, case: Case, answer: Answer) -> str:
    """One row of the table."""
    sentence = answer.sentence.replace("|", "\\|").replace("\n", " ")
    sentence = "".join(char if char.isprintable() else "?" for char in sentence)
    what = case.what.replace("|", "\\|")
    return (
        f"| {number} | {case.kind} | {what} | {answer.status} | {case.final} "
        f"| {sentence[:220]}{'…' * (len(sentence) > 220)} |"
    )


def main(url: str) -> int:
    data = Path(os.environ["MEDSEG_DATA_DIR"]).resolve()
    settings = {
        "": True,
        "small": os.environ.get("MEDSEG_MAX_UPLOAD_MB") == "1",
        "private": os.environ.get("MEDSEG_URL_IMPORT_ALLOW_PRIVATE") == "1",
    }
    platform = Platform(HttpClient(url))
    cases = [case for case in all_cases() if settings[case.setting] and (case.setting or not settings["private"])]
    before = Watch(platform, data)
    prepare(platform)
    watch = Watch(platform, data)
    wrong: list[str] = []
    with bad_site() as platform.address:
        print(HEAD, flush=True)
        for number, case in enumerate(cases, start=1):
            answer = _send(case, platform)
            print(row(number, case, answer), flush=True)
            wrong += [f"{number} ({case.what}): {problem}" for problem in watch.problems(case, answer)]
    clean(platform)
    wrong += before.at_the_end()
    if before._rows() != before.rows or before._objects() != before.objects:
        wrong.append("the platform does not hold what it held before")
    print(f"\ninputs: {len(cases)}, problems: {len(wrong)}", *wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def _send(case: Case, platform: Platform) -> Answer:
    try:
        return case.send(platform)
    except OSError as error:
        return Answer(0, {"error": f"no answer: {error}"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
