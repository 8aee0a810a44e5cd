"""Training, predicting and evaluating with folders, for notebooks and the command line."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.dataset.case import Case
from ml_core.dataset.checks import DatasetCheck
from ml_core.dataset.classes import ClassTable
from ml_core.dataset.folders import Described, describe, find_cases, find_images, read_all
from ml_core.dataset.nnunet import export_raw, read_raw, read_splits, write_splits
from ml_core.dataset.splits import StoredSplit, split_cases
from ml_core.documents import to_json
from ml_core.errors import MLError, TrainingError
from ml_core.front.progress import ProgressBar
from ml_core.io import Coding, Image, read_image, write_label_map
from ml_core.measures.metrics import NAMES
from ml_core.measures.results import Metrics
from ml_core.planning.request import TrainingRequest
from ml_core.prediction.package import read_package
from ml_core.prediction.predictor import Predictor, Segmentation
from ml_core.training.evaluation import evaluate as evaluate_cases
from ml_core.training.events import CurvePoint, Done, EpochEnded, Event, PlanMade, Started
from ml_core.training.job import TrainingJob
from ml_core.training.run import run
from ml_core.training.split import copies_held_out, duplicates_of, keep_signature

Folder = str | Path
STORE = ".store"  # decoded samples, in the folder of a training
ANOTHER_FOLDER = "Choose another folder for the output, or remove this one."


class Model:
    """A trained model: `path` of its package, `metrics` of its held-out cases (None where stopped), and its `plan`.

    mask_codes: colour in a mask (r<<16 | g<<8 | b) → label value, for one that learnt from masks in colours; {} otherwise.
    """

    def __init__(self, path: Folder) -> None:
        """`path`: model.zip, or the folder of a training. Raises ConfigError when it is damaged."""
        given = Path(path)
        self.path = given / "model.zip" if given.is_dir() else given
        package = read_package(self.path)
        self.metrics, self.plan = package.metrics, package.plan
        self.mask_codes = {int(code): int(value) for code, value in package.facts.get("mask_codes", {}).items()}

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}, {f'Dice {self.metrics.dice:.3f}' if self.metrics else 'not evaluated'})"

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor.load(self.path)

    def segment(self, image: Folder | Image) -> Segmentation:
        """The prediction with its warnings and seconds. Raises ImageError."""
        return self.predictor.predict(image if isinstance(image, Image) else read_image(Path(image)))

    def predict(self, image: Folder | Image) -> NDArray[Any]:
        """Label values, (H, W) or (D, H, W), on the axes that `ml_core.io.read_image` gives the image.

        How the image differs from those of the training is said as a Python warning. Raises ImageError.
        """
        found = self.segment(image)
        for text in found.warnings:
            warnings.warn(text, stacklevel=2)
        return found.values

    def evaluate(self, images: Folder, masks: Folder, *, out: Folder | None = None, progress: bool = True) -> Metrics:
        """As ml_core.evaluate."""
        return evaluate(self, images, masks, out=out, progress=progress)


def train(
    images: Folder | None = None,
    masks: Folder | None = None,
    *,
    out: Folder,
    nnunet_raw: Folder | None = None,
    channel: int | None = None,
    splits: Folder | None = None,
    fold: int = 0,
    test_images: Folder | None = None,
    test_masks: Folder | None = None,
    keep_store: bool = False,
    progress: bool = True,
    begun: float | None = None,
    **hyperparameters: Any,
) -> Model:
    """Train on folders of images and masks, or on nnU-Net's raw layout, and evaluate on what was held out.

    `out` gets model.zip, plan.json, curve.csv, splits_final.json, metrics.json and cases/*.png, and keeps the state of an
    unfinished training: the same call goes on with it. `splits` and `fold` take over a splits_final.json; `test_images`
    and `test_masks` are evaluated on instead of a part of the training cases. `hyperparameters` are those of
    ml_core.planning.hyperparameters; the time budget counts from `begun` (time.monotonic), now where it is left out. Ctrl-C stops in good
    order and keeps the best weights; a second one at once.
    Raises MLError (with code "stopped" where there are no weights yet).
    """
    begun = time.monotonic() if begun is None else begun
    request = TrainingRequest.from_json(hyperparameters)  # before the images are read
    tested = test_images is not None or test_masks is not None
    for name in ("folds", "test_fraction", *(["validation_fraction"] if splits is not None else [])):
        if name in hyperparameters and (splits is not None or tested):
            raise MLError("split_twice", f"{name} makes a split, and one is given.", f"Leave {name} out, or the split.")
    folder = Path(out)
    _check_unfinished(folder)
    with ProgressBar(shown=progress) as bar, _stopping(bar) as stop:
        described = read_cases(bar, images, masks, nnunet_raw=nnunet_raw, channel=channel)
        cases, split = described.cases, read_splits(Path(splits), fold, described.cases) if splits is not None else None
        tests = []
        if test_images is not None and test_masks is not None:
            tests = _read_tests(bar, Path(test_images), Path(test_masks), described)
        elif tested:
            raise MLError("test_folders", "A test set needs its images and its masks.", "Give both folders.")
        for case in cases:
            if case.id in described.signatures:
                keep_signature(case, folder / STORE, described.signatures[case.id])
        if tests:
            split = replace(split or _split(cases, folder / STORE, request), test=[case.id for case in tests])
            cases = cases + tests
        wanted, copies = dict(hyperparameters), None
        if split is not None:
            named = set(itertools.chain(*split.parts().values()))
            if unnamed := [case.name for case in cases if case.id not in named]:
                bar.note(
                    f"left out: {len(unnamed)} of {len(cases)} cases, such as {unnamed[0]}, which the split does not name."
                )
            cases = [case for case in cases if case.id in named]
            wanted.pop("validation_fraction", None)  # the job would split anew by it
            copies = copies_held_out(cases, split, folder / STORE)
        _begin(folder, {"cases": [[case.name, case.key] for case in cases], "hyperparameters": hyperparameters,
                        "split": split and split.to_json()})  # fmt: skip
        job = TrainingJob(
            cases,
            described.classes,
            described.fingerprint,
            TrainingRequest.from_json(wanted),
            folder,
            folder / STORE,
            facts={"name": folder.resolve().name, **({"mask_codes": described.codes} if described.codes else {})},
            split=split,
            caveats=[copies] if copies else [],
            warm_start=Path(wanted["warm_start"]) if "warm_start" in wanted else None,
        )
        record = _Record(folder, cases, bar)
        run(job, on_event=record.on_event, should_stop=stop.is_set, begun=begun)
        return _finish(folder, record.done, bar, keep_store=keep_store)


def predict(model: Model | Folder, images: list[Folder] | Folder, out: Folder, *, progress: bool = True) -> list[Path]:
    """Write a label map, on its image's own grid, as <name>.png or <name>.nii.gz for each image given or in a folder given."""
    used = model if isinstance(model, Model) else Model(model)
    given = [Path(item) for item in (images if isinstance(images, list) else [images])]
    found, folder = find_images(given, used.plan.dimensions), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    # Coded as the masks were that it learnt from.
    color_of = {value: code for code, value in used.mask_codes.items()}
    codes = np.array([color_of.get(value, value) for value in used.plan.class_values])
    written = []
    with ProgressBar(shown=progress) as bar, tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        for position, (name, path) in enumerate(found):
            try:
                image = read_image(path)
            except MLError as error:
                error.file = str(path)
                raise
            result = used.segment(image)
            for text in result.warnings:
                bar.note(f"{path}: {text}")
            coding: Coding = "rgb" if color_of else "values"
            labels = write_label_map(codes[result.indices], image, Path(scratch), coding)
            written.append(labels.replace(folder / (name + labels.name.removeprefix("labels"))))
            bar.count("predicting", position + 1, len(found))
    return written


def evaluate(
    model: Model | Folder, images: Folder, masks: Folder, *, out: Folder | None = None, progress: bool = True
) -> Metrics:
    """The metrics of two folders (ml_core.training.evaluation); `out` gets metrics.json and cases/*.png."""
    used = model if isinstance(model, Model) else Model(model)
    pictures = None
    if out is not None:
        pictures = Path(out) / "cases"
        pictures.mkdir(parents=True, exist_ok=True)
    with ProgressBar(shown=progress) as bar:
        found_cases = find_cases(Path(images), Path(masks), bar.issue)
        cases = [replace(case, codes=used.mask_codes) for case in found_cases]

        def on_case(done: int, total: int) -> None:
            bar.count("evaluating", done, total)

        predictors = [used.predictor] * len(cases)
        metrics = evaluate_cases(predictors, cases, evaluated_on="given", pictures=pictures, on_case=on_case)
    if out is not None:
        _write_json(Path(out) / "metrics.json", metrics)
    return metrics


def export_nnunet(images: Folder, masks: Folder, out: Folder, *, progress: bool = True) -> Path:
    """Write two folders as nnU-Net's raw dataset `out` (…/nnUNet_raw/DatasetNNN_Name), and return its path."""
    with ProgressBar(shown=progress) as bar:
        described = read_cases(bar, images, masks)
        export_raw(described, Path(out), lambda done, total: bar.count("writing", done, total))
    return Path(out)


def metrics_table(metrics: Metrics) -> str:
    """The metrics per class as text, one row for each, with the mean of the foreground below."""
    rows = [["class", *NAMES, "cases", "undefined", "misses"]]
    for name, means in [*((row.name, row) for row in metrics.per_class), ("foreground", metrics)]:
        numbers = ["–" if math.isnan(value) else f"{value:.3f}" for value in (getattr(means, item) for item in NAMES)]
        rows.append([name, *numbers, str(means.n_cases), str(means.undefined), str(means.misses)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    low, high = metrics.ci95["dice"]
    if not math.isnan(low):
        lines.append(f"95 % interval of the foreground's Dice over cases: {low:.3f} to {high:.3f}")
    lines.append(f"Evaluated on: {metrics.evaluated_on}, full images; distances in {metrics.unit}.")
    return "\n".join(lines)


def read_cases(
    bar: ProgressBar,
    images: Folder | None,
    masks: Folder | None,
    *,
    nnunet_raw: Folder | None = None,
    channel: int | None = None,
) -> Described:
    """The cases of two folders or of a raw dataset, read once."""
    names = None
    if nnunet_raw is not None and images is None and masks is None:
        cases, names = read_raw(Path(nnunet_raw), channel)
    elif nnunet_raw is None and images is not None and masks is not None:
        cases = find_cases(Path(images), Path(masks), bar.issue)
    else:
        raise MLError("no_folders", "Folders are missing or too many.", "Give images and masks, or nnunet_raw.")
    return describe(cases, bar.issue, lambda done, total: bar.count("reading", done, total), names)


def _read_tests(bar: ProgressBar, images: Path, masks: Path, described: Described) -> list[Case]:
    """A test set's cases, numbered after those of the training. Unknown classes are found now, not after the training."""
    first = max(case.id for case in described.cases)
    found = find_cases(images, masks, bar.issue)
    cases = [replace(case, id=first + case.id, name=f"test_{case.name}") for case in found]
    table = ClassTable(described.classes, described.codes)
    kind = described.fingerprint
    check = DatasetCheck(table, dimensions=kind.dimensions, channels=kind.channels)
    tests = read_all(cases, check, bar.issue, lambda done, total: bar.count("reading test set", done, total))
    if not tests:
        raise MLError(
            "no_tests", f"None of the images in {images} can be used for a test.", "See what was left out above."
        )
    known = {item["value"] for item in described.classes}
    if strange := sorted(set(table.colors()) - known):
        raise TrainingError(
            "unknown_label",
            f"The test masks have values that the training masks lack: {strange[:5]}.",
            "Code all masks in the same way.",
        )
    return [replace(test.case, group=test.group, codes=table.codes()) for test in tests]


def _split(cases: list[Case], store: Path, request: TrainingRequest) -> StoredSplit:
    """Who is trained and who is validated on. With a test set from elsewhere, none of the cases need to be locked away."""
    made = split_cases(
        [case.group for case in cases],
        seed=int(request.or_default("seed")),
        validation_fraction=float(request.or_default("validation_fraction")),
        test_fraction=0.0,
        duplicates=duplicates_of(cases, store),
    )
    return made.to_names([case.id for case in cases])


def _check_unfinished(folder: Path) -> None:
    if (folder / "metrics.json").exists():
        raise MLError("already_trained", f"{folder} holds a finished training.", ANOTHER_FOLDER)


def _begin(folder: Path, request: dict[str, Any]) -> None:
    """Remember what was asked for. In the folder of an unfinished training only the same may be asked for again."""
    folder.mkdir(parents=True, exist_ok=True)
    document, request = folder / "training.json", json.loads(json.dumps(request))
    if document.exists() and json.loads(document.read_text()) != request:
        reason = f"{folder} holds an unfinished training of other images or settings."
        raise MLError("another_training", reason, ANOTHER_FOLDER)
    _write_json(document, request)


class _Record:
    """Keeps what a training tells: plan and split at its start, the curve as it grows, and how it ended."""

    def __init__(self, folder: Path, cases: list[Case], bar: ProgressBar) -> None:
        self.folder, self.cases, self.bar = folder, cases, bar
        self.done: Done | None = None
        self.curve: list[CurvePoint] = []

    def on_event(self, event: Event) -> None:
        self.bar.on_event(event)
        match event:
            case PlanMade():
                _write_json(self.folder / "plan.json", event.plan)
                write_splits(self.folder / "splits_final.json", event.split, self.cases)
            case Started():  # with the epochs before an interruption
                before = event.epoch - len(event.curve)
                self.curve = [*(point for point in self.curve if point.epoch <= before), *event.curve]
            case EpochEnded(point):
                self.curve.append(point)
                with (self.folder / "curve.csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, [field.name for field in fields(CurvePoint)])
                    writer.writeheader()
                    writer.writerows(asdict(point) for point in self.curve)
            case Done():
                self.done = event


def _finish(folder: Path, done: Done | None, bar: ProgressBar, *, keep_store: bool) -> Model:
    assert done, "a training that raises nothing ends with this event"
    for text in done.warnings:
        bar.note(text)
    if done.package is None:
        raise TrainingError(
            "stopped", "The training was stopped before its first epoch ended.", "Run it again to go on."
        )
    if done.stopped:
        bar.note(f"Stopped. {done.package} has the best weights so far; run the same again to go on.")
    else:
        _write_json(folder / "metrics.json", done.metrics)
        for checkpoint in folder.rglob("*.safetensors"):  # the package has the weights
            checkpoint.unlink()
        for member in folder.glob("member_*"):
            member.rmdir()
        if not keep_store:
            shutil.rmtree(folder / STORE, ignore_errors=True)
    return Model(done.package)


@contextmanager
def _stopping(bar: ProgressBar) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second interrupts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there signals can be handled
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop.set()
        bar.note("Stopping in good order; press Ctrl-C again to stop at once.")

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(to_json(document), indent=1))
