"""Train, predict, evaluate and export with folders of images, from a notebook or the command line."""

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
from ml_core.dataset.reading import Reading, settled
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
# The folder of the decoded samples, inside the folder of a training.
STORE = ".store"
ANOTHER_FOLDER = "Choose another folder for the output, or remove this one."


class Model:
    """A trained model: the `path` of its package, its `plan`, and the `metrics` of its held-out cases.

    `metrics` is None if the training was stopped before its evaluation. `mask_codes` maps the values in a mask to label
    values, as in ml_core.dataset.reading; {} where each value is its own label value.
    """

    def __init__(self, path: Folder) -> None:
        """`path`: model.zip, or the folder of a training. Raises ConfigError if the package is damaged."""
        given = Path(path)
        self.path = given / "model.zip" if given.is_dir() else given
        package = read_package(self.path)
        self.metrics, self.plan = package.metrics, package.plan
        self.mask_codes = package.plan.fingerprint.mask_codes

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}, {f'Dice {self.metrics.dice:.3f}' if self.metrics else 'not evaluated'})"

    @cached_property
    def predictor(self) -> Predictor:
        """The model, loaded into memory on first use."""
        return Predictor.load(self.path)

    def segment(self, image: Folder | Image) -> Segmentation:
        """Predict a file, a folder of DICOM slices, or an image. Raises ImageError if it cannot be read."""
        return self.predictor.predict(image if isinstance(image, Image) else read_image(Path(image)))

    def predict(self, image: Folder | Image) -> NDArray[Any]:
        """Predict the label values of an image: (H, W) or (D, H, W), on the axes that `ml_core.io.read_image` gives it.

        Warns, as Python does, if the image differs from those of the training. Raises ImageError if it cannot be read.
        """
        segmentation = self.segment(image)
        for text in segmentation.warnings:
            warnings.warn(text, stacklevel=2)
        return segmentation.values

    def evaluate(self, images: Folder, masks: Folder, *, out: Folder | None = None, progress: bool = True) -> Metrics:
        """Evaluate this model on two folders, as `ml_core.evaluate` does."""
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
    """Train on folders of images and masks, or on nnU-Net's raw layout, and evaluate on the held-out cases.

    out: gets model.zip, plan.json, curve.csv, splits_final.json, metrics.json and cases/*.png, and keeps the state of
    an unfinished training, which the same call resumes. nnunet_raw, channel: a raw dataset instead of images and masks,
    and which of its channels to use. splits, fold: a splits_final.json to follow, and which of its folds. test_images,
    test_masks: cases to evaluate on, instead of a part of the training cases. keep_store: whether to keep the decoded
    images. begun: when the time budget began, by time.monotonic; None for now. hyperparameters: those of
    ml_core.planning.hyperparameters; the others are planned.

    Ctrl-C stops the training and keeps the best weights; a second Ctrl-C interrupts at once.
    Raises MLError, with code "stopped" if the training was stopped before there were weights.
    """
    begun = time.monotonic() if begun is None else begun
    # A wrong hyperparameter is refused before the images are read, which may take long.
    request = TrainingRequest.from_json(hyperparameters)
    has_tests = test_images is not None or test_masks is not None
    for name in ("folds", "test_fraction", *(["validation_fraction"] if splits is not None else [])):
        if name in hyperparameters and (splits is not None or has_tests):
            reason = f"{name} makes a split, but a split is given already."
            raise MLError("split_twice", reason, f"Leave out either {name} or the split.")
    folder = Path(out)
    _check_unfinished(folder)
    with ProgressBar(shown=progress) as bar, _stopping(bar) as stop:
        described = read_cases(bar, images, masks, nnunet_raw=nnunet_raw, channel=channel)
        cases, split = described.cases, read_splits(Path(splits), fold, described.cases) if splits is not None else None
        tests = []
        if test_images is not None and test_masks is not None:
            tests = _read_tests(bar, Path(test_images), Path(test_masks), described)
        elif has_tests:
            raise MLError("test_folders", "A test set needs its images and its masks.", "Give both folders.")
        for case in cases:
            if case.id in described.signatures:
                keep_signature(case, folder / STORE, described.signatures[case.id])
        if tests:
            split = replace(split or _split(cases, folder / STORE, request), test=[case.id for case in tests])
            cases = cases + tests
        job_hyperparameters, copies = dict(hyperparameters), None
        if split is not None:
            named = set(itertools.chain(*split.parts().values()))
            if unnamed := [case.name for case in cases if case.id not in named]:
                which = f"{len(unnamed)} of {len(cases)} cases, such as {unnamed[0]}"
                bar.note(f"left out: {which}, because the split does not name them.")
            cases = [case for case in cases if case.id in named]
            # With this hyperparameter the job would make a new split.
            job_hyperparameters.pop("validation_fraction", None)
            copies = copies_held_out(cases, split, folder / STORE)
        _begin(folder, {"cases": [[case.name, case.key] for case in cases], "hyperparameters": hyperparameters,
                        "split": split and split.to_json()})  # fmt: skip
        job = TrainingJob(
            cases,
            described.classes,
            described.fingerprint,
            TrainingRequest.from_json(job_hyperparameters),
            folder,
            folder / STORE,
            facts={"name": folder.resolve().name},
            split=split,
            caveats=[copies] if copies else [],
            warm_start=Path(job_hyperparameters["warm_start"]) if "warm_start" in job_hyperparameters else None,
        )
        record = _Record(folder, cases, bar)
        run(job, on_event=record.on_event, should_stop=stop.is_set, begun=begun)
        return _finish(folder, record.done, bar, keep_store=keep_store)


def predict(model: Model | Folder, images: list[Folder] | Folder, out: Folder, *, progress: bool = True) -> list[Path]:
    """Write a label map for each image to `out`, as <name>.png or <name>.nii.gz on the image's own grid.

    images: files, folders of files, or folders of DICOM slices. Returns the written paths. Raises MLError.
    """
    loaded = model if isinstance(model, Model) else Model(model)
    sources = [Path(item) for item in (images if isinstance(images, list) else [images])]
    paths, folder = find_images(sources, loaded.plan.dimensions), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    # The label maps use the same colours or values as the masks that the model learnt from.
    coloured = {value: key for key, value in reversed(loaded.mask_codes.items()) if key.startswith("#")}
    color_of = {value: int(key[1:], 16) for value, key in coloured.items()}
    codes = np.array([color_of.get(value, value) for value in loaded.plan.class_values])
    written = []
    with ProgressBar(shown=progress) as bar, tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        for position, (name, path) in enumerate(paths):
            try:
                image = read_image(path)
            except MLError as error:
                error.file = str(path)
                raise
            result = loaded.segment(image)
            for text in result.warnings:
                bar.note(f"{path}: {text}")
            coding: Coding = "rgb" if color_of else "values"
            labels = write_label_map(codes[result.indices], image, Path(scratch), coding)
            written.append(labels.replace(folder / (name + labels.name.removeprefix("labels"))))
            bar.count("predicting", position + 1, len(paths))
    return written


def evaluate(
    model: Model | Folder, images: Folder, masks: Folder, *, out: Folder | None = None, progress: bool = True
) -> Metrics:
    """Measure a model on two folders; `out` gets metrics.json and cases/*.png. Raises MLError for unusable files."""
    loaded = model if isinstance(model, Model) else Model(model)
    pictures = None
    if out is not None:
        pictures = Path(out) / "cases"
        pictures.mkdir(parents=True, exist_ok=True)
    with ProgressBar(shown=progress) as bar:
        found_cases = find_cases(Path(images), Path(masks), bar.issue)
        cases = [replace(case, codes=loaded.mask_codes) for case in found_cases]

        def on_case(done: int, total: int) -> None:
            bar.count("evaluating", done, total)

        predictors = [loaded.predictor] * len(cases)
        metrics = evaluate_cases(predictors, cases, evaluated_on="given", pictures=pictures, on_case=on_case)
    if out is not None:
        _write_json(Path(out) / "metrics.json", metrics)
    return metrics


def export_nnunet(images: Folder, masks: Folder, out: Folder, *, progress: bool = True) -> Path:
    """Write two folders as nnU-Net's raw dataset `out` (…/nnUNet_raw/DatasetNNN_Name); returns its path."""
    with ProgressBar(shown=progress) as bar:
        described = read_cases(bar, images, masks)
        export_raw(described, Path(out), lambda done, total: bar.count("writing", done, total))
    return Path(out)


def metrics_table(metrics: Metrics) -> str:
    """The metrics as a text table: a row for each class, and below them the mean over the foreground."""
    rows = [["class", *NAMES, "cases", "undefined", "misses"]]
    for name, means in [*((row.name, row) for row in metrics.per_class), ("foreground", metrics)]:
        numbers = ["–" if math.isnan(value) else f"{value:.3f}" for value in (getattr(means, item) for item in NAMES)]
        rows.append([name, *numbers, str(means.n_cases), str(means.undefined), str(means.misses)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    low, high = metrics.ci95["dice"]
    if not math.isnan(low):
        lines.append(f"95 % confidence interval of the foreground's mean Dice over cases: {low:.3f} to {high:.3f}")
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
    """Read the cases of two folders or of a raw dataset. Raises MLError if not exactly one of these is given."""
    names, reading = None, None
    if nnunet_raw is not None and images is None and masks is None:
        cases, names, reading = read_raw(Path(nnunet_raw), channel)
    elif nnunet_raw is None and images is not None and masks is not None:
        cases = find_cases(Path(images), Path(masks), bar.issue)
    else:
        reason = "A folder is missing, or too many are given."
        raise MLError("no_folders", reason, "Give either images and masks, or nnunet_raw.")
    return describe(cases, bar.issue, lambda done, total: bar.count("reading", done, total), names, reading)


def _read_tests(bar: ProgressBar, images: Path, masks: Path, described: Described) -> list[Case]:
    """Read the cases of a test set, with ids that follow those of the training.

    Classes that the training lacks raise MLError now, because otherwise they would be noticed only after the training.
    """
    first = max(case.id for case in described.cases)
    named_cases = find_cases(images, masks, bar.issue)
    cases = [replace(case, id=first + case.id, name=f"test_{case.name}") for case in named_cases]
    decision = settled(Reading(), described.classes[0]["value"], described.fingerprint.ignored, described.codes)
    table = ClassTable(described.classes, decision)
    kind = described.fingerprint
    check = DatasetCheck(table, dimensions=kind.dimensions, channels=kind.channels)
    tests = read_all(cases, check, bar.issue, lambda done, total: bar.count("reading test set", done, total))
    if not tests:
        raise MLError(
            "no_tests", f"None of the images in {images} can be used for a test.", "See what was left out above."
        )
    known = {item["value"] for item in described.classes}
    if unknown := sorted(set(table.colors()) - known):
        raise TrainingError(
            "unknown_label",
            f"The test masks have values that the training masks lack: {unknown[:5]}.",
            "Code all masks in the same way.",
        )
    return [replace(test.case, group=test.group, codes=table.codes()) for test in tests]


def _split(cases: list[Case], store: Path, request: TrainingRequest) -> StoredSplit:
    """Split the cases into training and validation. No test part is needed, because the test set is given."""
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
    """Write the request to the folder. Raises MLError if the folder holds an unfinished training of another request."""
    folder.mkdir(parents=True, exist_ok=True)
    document, request = folder / "training.json", json.loads(json.dumps(request))
    if document.exists() and json.loads(document.read_text()) != request:
        reason = f"{folder} holds an unfinished training of other images or settings."
        raise MLError("another_training", reason, ANOTHER_FOLDER)
    _write_json(document, request)


class _Record:
    """Writes the events of a training to its folder: plan, split and curve. Remembers how it ended."""

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
            # The event holds the epochs before an interruption, which replace those that are known.
            case Started():
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
        bar.note(f"Stopped. {done.package} has the best weights so far. Run the same command again to go on.")
    else:
        _write_json(folder / "metrics.json", done.metrics)
        # The checkpoints are not needed any more, because the package has the weights.
        for checkpoint in folder.rglob("*.safetensors"):
            checkpoint.unlink()
        for member in folder.glob("member_*"):
            member.rmdir()
        if not keep_store:
            shutil.rmtree(folder / STORE, ignore_errors=True)
    return Model(done.package)


@contextmanager
def _stopping(bar: ProgressBar) -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets. The second Ctrl-C interrupts as usual."""
    stop = threading.Event()
    # Python handles signals only in the main thread.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop.set()
        bar.note("Stopping and keeping the best weights; press Ctrl-C again to stop at once.")

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(to_json(document), indent=1))
