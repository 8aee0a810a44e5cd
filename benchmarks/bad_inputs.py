"""Send bad inputs to a running platform and print, as a Markdown table, what it made of each.

    MEDSEG_DATA_DIR=<its data folder> python benchmarks/bad_inputs.py http://127.0.0.1:8000 [more.md …]

Everything it makes it deletes again. The exit code is 1 when an answer was not the right one, or when something was
left: a row that should not be, an object in storage, a temporary file, or a traceback in a log. Inputs that need a
setting (MEDSEG_MAX_UPLOAD_MB=1, MEDSEG_URL_IMPORT_ALLOW_PRIVATE=1) are sent where the command is started with the
same setting as the platform.
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

KINDS = ("inferences", "inference-batches", "models", "datasets")  # in the order in which they can be deleted
OBJECTS = ("datasets", "models", "inferences", "batches")
HEAD = "| # | Kind | What was sent | HTTP | Final status | The answer's sentence |\n|--:|---|---|--:|---|---|"
SMALL = {"architecture": "unet", "encoder": "resnet18", "epochs": 1, "patch_size": 32, "time_budget_seconds": 10}


@functools.cache
def all_cases() -> list[Case]:
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
    """What is in the platform's tables and in its data folder besides what was there at the start."""

    def __init__(self, platform: Platform, data: Path) -> None:
        self.platform, self.data = platform, data
        self.rows, self.objects = self._rows(), self._objects()
        self.tracebacks = self._tracebacks()

    def _rows(self) -> set[tuple[str, int]]:
        pages = {kind: self.platform.get(f"{kind}/?page_size=500").body["results"] for kind in KINDS}
        return {(kind, row["id"]) for kind, rows in pages.items() for row in rows}

    def _objects(self) -> set[str]:
        media = self.data / "media"
        found = (path for kind in OBJECTS for path in (media / kind).rglob("*") if path.is_file())
        return {path.relative_to(media).as_posix() for path in found}

    def _tracebacks(self) -> int:
        logs = (self.data / "logs").glob("*.log")
        texts = [log.read_text(errors="replace") for log in logs]
        # Django writes one for every unknown Host, which is no fault.
        return sum(text.count("Traceback (most recent") - text.count("django.security.") for text in texts)

    def problems(self, case: Case, answer: Answer) -> Iterator[str]:
        """What is wrong with an answer, and with what it left. Deletes the rows that were made."""
        said = answer.sentence
        final = (answer.body or {}).get("status", "") if case.final and isinstance(answer.body, dict) else ""
        if answer.status not in case.status:
            yield f"HTTP {answer.status} instead of {' or '.join(map(str, case.status))}"
        if final != case.final:
            yield f"ended as {final!r} instead of {case.final!r}"
        if case.says.strip().lower() not in said.lower() or (case.says and not said):
            yield f"does not say {case.says!r}"
        if "unexpectedly" in said or "Traceback" in said or "Error(" in said:
            yield "does not say what to do"
        new = self._rows() - self.rows
        if new and not case.final and case.kind != "state":
            yield f"left the rows {sorted(new)}"
        # A row that is in error stays to tell why, and so does what tells of it should the database be lost.
        objects = {key for key in self._objects() - self.objects if not (new and key.endswith("/manifest.json"))}
        unpacked = isinstance(answer.body, dict) and answer.body.get("total")  # a batch, whose rows own their images
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
        deadline = time.monotonic() + 10
        while (left := list((self.data / "tmp").glob("*"))) and time.monotonic() < deadline:
            time.sleep(0.2)
        if left:
            yield f"{len(left)} temporary files are left, such as {left[0].name}"
        if more := self._tracebacks() - self.tracebacks:
            yield f"{more} tracebacks were logged"


def prepare(platform: Platform) -> None:
    """A good dataset, a model trained on it for a moment, and an inference."""
    made = platform.upload(zipped(good_pairs(4)), "good.zip", "good input")
    platform.dataset = made.body["id"]
    platform.model = platform.train(SMALL, name="good input").body["id"]
    while (state := platform.get(f"models/{platform.model}/").body)["status"] in ("queued", "training"):
        time.sleep(0.5)
    assert state["status"] == "completed", state
    platform.inference = platform.segment("a.png", good_image()).body["id"]


def clean(platform: Platform) -> None:
    for path in (f"inferences/{platform.inference}/", f"models/{platform.model}/", f"datasets/{platform.dataset}/"):
        platform.delete(path)


def row(number: int, case: Case, answer: Answer) -> str:
    said = answer.sentence.replace("|", "\\|").replace("\n", " ")
    said = "".join(char if char.isprintable() else "?" for char in said)
    what = case.what.replace("|", "\\|")
    return (
        f"| {number} | {case.kind} | {what} | {answer.status} | {case.final} | {said[:220]}{'…' * (len(said) > 220)} |"
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
    print(f"\n{len(cases)} inputs, {len(wrong)} wrong", *wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def _send(case: Case, platform: Platform) -> Answer:
    try:
        return case.send(platform)
    except OSError as error:
        return Answer(0, {"error": f"no answer: {error}"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
