"""One whole training: cases in, events out, a model package at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ml_core.cases.store import StoredCase, open_store
from ml_core.dataset.case import Case
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.dataset.splits import Split, StoredSplit
from ml_core.errors import TrainingError, explained, is_out_of_memory
from ml_core.files import size_of
from ml_core.measures.results import Metrics
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import DEFAULT_SECONDS, make_plan
from ml_core.prediction.decisions import Decisions, Refinements
from ml_core.prediction.package import LEARNT_FROM, Package, read_package, write_package
from ml_core.prediction.predictor import Predictor, network_of
from ml_core.training.evaluation import caveats, evaluate
from ml_core.training.preflight import check_disk, fit_into_memory, lower_batch
from ml_core.training.refinement import Member, refine
from ml_core.training.rehearsal import Estimate, rehearse
from ml_core.training.split import order_to_read, same_again, split_job, stored_split, unseen_classes
from ml_core.training.state import load_weights, seconds_spent
from ml_core.training.trainer import TrainResult, fit
from ml_core.training.warm_start import read_warm_start

PREPARING_SHARE, LEAST_PREPARING = 0.25, 0.1  # of the time budget, until the cases that are decoded by then have to do
LATEST = 1.07  # of the time budget: no evaluation of a further case that would end later


@dataclass(frozen=True)
class TrainingJob:
    """What a training needs. `folder` gets checkpoints, pictures and model.zip; `store` the decoded samples (may be shared).

    split: one to be reused, by ids. earlier_split: that of an earlier attempt; it is kept where that left a checkpoint.
    warm_start: a package to take weights from. plan: that of an earlier attempt; it is kept where that left a checkpoint, whatever
    this machine would plan. batch_limit: what fitted into memory after all. salvage: train no more, package the best weights of the
    checkpoints. caveats: sentences that the model's warnings begin with.
    """

    cases: list[Case]
    classes: list[LabelClass]
    fingerprint: Fingerprint
    hyperparameters: dict[str, Any]
    folder: Path
    store: Path
    default_seconds: int = DEFAULT_SECONDS
    facts: dict[str, Any] = field(default_factory=dict)
    split: StoredSplit | None = None
    earlier_split: StoredSplit | None = None
    warm_start: Path | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    batch_limit: int | None = None
    salvage: bool = False
    caveats: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        values = json.loads(path.read_text())
        cases = [Case.from_dict(item) for item in values.pop("cases")]
        paths = {name: Path(values[name]) for name in ("folder", "store", "warm_start") if values.get(name)}
        splits = {name: StoredSplit.from_json(values[name]) for name in ("split", "earlier_split") if values.get(name)}
        values |= {"split": None, "earlier_split": None, "fingerprint": Fingerprint.from_json(values["fingerprint"])}
        return cls(**{**values, "cases": cases, **paths, **splits})


Event = Callable[[dict[str, Any]], None]


class _StoppedError(Exception):
    pass


def run(job: TrainingJob, *, on_event: Event, should_stop: Callable[[], bool], begun: float | None = None) -> None:
    """Plan, split, decode, train, refine, evaluate, package. The last event is `done`; failures are raised as MLError.

    `begun` (time.monotonic): since when the time budget counts; now, where it is left out.
    """
    try:
        _Run(job, on_event, should_stop, time.monotonic() if begun is None else begun).whole()
    except (RuntimeError, MemoryError) as error:
        known = explained(error)
        if known is None:
            raise
        raise known from error


class _Run:
    def __init__(self, job: TrainingJob, on_event: Event, should_stop: Callable[[], bool], begun: float) -> None:
        self.job, self.emit, self.should_stop, self.begun = job, on_event, should_stop, begun
        self.wanted = TrainingRequest.from_json(job.hyperparameters)
        self.warnings: list[str] = list(job.caveats)
        self.machine = Machine.here()
        self.plan = self._plan()
        self.epochs = 0
        self.split = job.split or StoredSplit()
        self.best_epochs: list[int] = []
        self.learnt_from: set[str] = set()

    def _plan(self) -> Plan:
        job = self.job
        plan = make_plan(self.wanted, job.fingerprint, job.classes, self.machine, default_seconds=job.default_seconds)
        if job.plan and self._goes_on():
            plan = plan.continuing(Plan.from_json(job.plan))
        if job.batch_limit and job.batch_limit < plan.batch_size:
            text = f"The batch was lowered from {plan.batch_size} to {job.batch_limit}, since memory ran out."
            plan = lower_batch(plan, job.batch_limit, text)
            self.warnings.append(text)
        return plan

    def _goes_on(self) -> bool:
        return any(self.job.folder.rglob("*.safetensors"))

    def whole(self) -> None:
        if self.job.salvage:
            known = self.job.folder / LEARNT_FROM
            self.learnt_from = set(json.loads(known.read_text())) if known.exists() else set()
            self._package(self._salvaged(), None, Decisions(), stopped=True)
            return
        self._preflight()
        try:
            splits = self._splits()
            stored = self._decode(splits)
            estimate = self._rehearse(splits, stored)
            members, stopped = self._train(splits, stored, estimate)
        except _StoppedError:
            members, stopped = [], True
        if stopped:
            self.emit({"type": "stopping"})
        if not members and any(self.job.folder.rglob("best.safetensors")):
            members = self._salvaged()  # of an earlier attempt: this one was stopped before its first step
        if not members:
            self.emit({"type": "done", "stopped": True, "package": None, "metrics": {}, "decisions": {},
                       "warnings": self.warnings})  # fmt: skip
            return
        metrics: Metrics | None = None
        decisions = Decisions()
        if not stopped:
            try:
                decisions, metrics = self._finish(members, splits, estimate)
            except _StoppedError:
                stopped = True
        self._package(members, metrics, decisions, stopped)

    def _preflight(self) -> None:
        self.plan, lowered = fit_into_memory(self.plan, self.machine)
        self.job.store.mkdir(parents=True, exist_ok=True)
        check_disk(self.plan, self.job.cases, self.job.folder, self.job.store)
        if lowered:
            self._say(lowered)

    def _say(self, text: str) -> None:
        """Something that the reader should know now and later."""
        self.warnings.append(text)
        self.emit({"type": "note", "text": text})

    def _splits(self) -> list[Split]:
        """One, or one per fold."""
        earlier = self.job.earlier_split if self._goes_on() else None
        splits = same_again(self.job.cases, earlier) if earlier else None
        splits = splits or split_job(self.job.cases, self.plan, self.wanted, self.job.split, self.job.store)
        self.split = stored_split(self.job.cases, splits)
        self.learnt_from = {self.job.cases[index].mark for split in splits for index in split.train}
        part = self.job.folder / f".{LEARNT_FROM}.part"  # for a salvage, which has no cases; whole or not at all
        part.write_text(json.dumps(sorted(self.learnt_from)))
        part.replace(self.job.folder / LEARNT_FROM)
        plan = {"hyperparameters": self.plan.hyperparameters(), "plan": self.plan.to_json()}
        self.emit({"type": "plan", **plan, "split": self.split.to_json()})
        return splits

    def _decode(self, splits: list[Split]) -> dict[int, StoredCase]:
        """The cases to learn from and to validate on, by position; of very many as many as the time budget allows, spread evenly."""
        order, least = order_to_read(splits)
        budget, until = self.plan.time_budget_seconds, None
        if budget:
            until = max(self.begun + PREPARING_SHARE * budget, time.monotonic() + LEAST_PREPARING * budget)
        stored = open_store(
            self.job.store,
            [self.job.cases[index] for index in order],
            self.plan,
            lambda done, total: self._report("preparing", done, total),
            until=until,
            least=least,
        )
        found = dict(zip(order, stored, strict=False))
        if len(found) < len(order):
            self._say(
                f"{len(found)} of the {len(order)} cases to learn from, spread evenly, could be read in the part of the time budget "
                "that is kept for it, and the model learns from these. Allow more time for more of them."
            )
        train = [found[index] for index in splits[0].train if index in found]
        if len(splits) == 1 and (warning := unseen_classes(self.plan, train)):
            self._say(warning)
        return found

    def _rehearse(self, splits: list[Split], stored: dict[int, StoredCase]) -> Estimate:
        first = splits[0]
        held_out = sorted((self.job.cases[index] for index in first.held_out), key=lambda case: size_of(case.image))
        estimate = rehearse(
            self.plan,
            [stored[index] for index in first.train if index in stored],
            [stored[index] for index in first.val if index in stored],
            held_out[len(held_out) // 2],
            n_test=len(held_out),
            n_val=len(first.val),
            members=len(splits) * self.plan.seeds,
        )
        self.emit({"type": "estimate", **estimate.to_dict()})
        return estimate

    def _train(
        self, splits: list[Split], stored: dict[int, StoredCase], estimate: Estimate
    ) -> tuple[list[Member], bool]:
        """The trained networks, and whether somebody stopped it."""
        warm = self._warm_start(splits)
        seeds = [self.plan.seed + number for number in range(self.plan.seeds)]
        runs = [(split, seed) for split in splits for seed in seeds]
        members: list[Member] = []
        end, short = estimate.end_of_training(self.plan.time_budget_seconds, self.begun)
        self.warnings += [short] if short else []
        for number, (split, seed) in enumerate(runs):
            folder = self.job.folder if len(runs) == 1 else self.job.folder / f"member_{number}"
            folder.mkdir(exist_ok=True)
            if self.plan.torch_compile == "on" and number == 0:  # PyTorch remembers it for the others
                self._report("compiling", 0, 1)
            now = time.monotonic()
            deadline = None if end is None else now + (end - now) / (len(runs) - number)
            train, val = ([stored[index] for index in part if index in stored] for part in (split.train, split.val))
            result = self._fit(train, val, folder, seed, self._as_part(number, len(runs)), deadline, warm)
            self.epochs += result.epochs
            self.best_epochs.append(result.best_epoch)
            self.warnings += [text for text in result.warnings if text not in self.warnings]
            if result.network is not None:
                members.append(Member(result.network, [self.job.cases[index] for index in split.val]))
            if result.stopped:
                return members, True
        return members, False

    def _warm_start(self, splits: list[Split]) -> dict[str, Tensor] | None:
        if not self.job.warm_start:
            return None
        held_out = {self.job.cases[index].mark for split in splits for index in split.held_out}
        earlier = read_warm_start(self.job.warm_start, held_out)
        if earlier.caveat:
            self._say(earlier.caveat)
        self.learnt_from |= earlier.learnt_from
        return earlier.weights

    def _fit(
        self,
        train: list[StoredCase],
        val: list[StoredCase],
        folder: Path,
        seed: int,
        on_event: Event,
        deadline: float | None,
        warm: Any,
    ) -> TrainResult:
        """trainer.fit; where memory runs out in spite of all, on from the checkpoint with half the batch."""
        given, before = deadline, seconds_spent(folder)  # fit takes off what the checkpoint says at its start
        while True:
            plan = self.plan.with_seed(seed)
            try:
                return fit(plan, train, val, folder, on_event=on_event, should_stop=self.should_stop, deadline=deadline,
                           warm_start=warm)  # fmt: skip
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or plan.batch_size <= 2:
                    raise
            # Outside the except block: the error holds on to everything that filled the memory.
            if given is not None:
                deadline = given + seconds_spent(folder) - before  # what is added since is this very training's
            batch = max(2, plan.batch_size // 2)
            text = f"Memory ran out with a batch of {plan.batch_size}, so it goes on with {batch}."
            self.plan = lower_batch(self.plan, batch, text)
            self._say(text)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _salvaged(self) -> list[Member]:
        """The networks with the best weights that the checkpoints hold."""
        members = []
        for path in sorted(self.job.folder.rglob("best.safetensors")):
            network = network_of(self.plan)
            weights, facts = load_weights(path)
            network.load_state_dict(weights)
            members.append(Member(network.eval(), []))
            self.best_epochs.append(facts["epoch"])
            self.epochs += facts["epoch"]
        if not members:
            raise TrainingError("no_weights", "No epoch was finished, so there are no weights to keep.", "Train again.")
        return members

    def _finish(self, members: list[Member], splits: list[Split], estimate: Estimate) -> tuple[Decisions, Metrics]:
        decisions = refine(
            members,
            self.plan,
            seconds=estimate.refining_seconds,
            a_case=estimate.seconds_a_case,
            mirroring=estimate.mirroring,
            on_progress=lambda done, total: self._report("refining", done, total),
        )
        pictures = self.job.folder / "cases"
        pictures.mkdir(exist_ok=True)
        predictors, cases = self._predictors(members, splits, decisions.refinements())
        budget = self.plan.time_budget_seconds
        metrics = evaluate(
            predictors,
            cases,
            evaluated_on="test" if splits[0].test else "val",
            pictures=pictures,
            on_case=lambda done, total: self._report("evaluating", done, total),
            deadline=self.begun + LATEST * budget if budget else None,
        )
        self.warnings += caveats(metrics, grouping=splits[0].grouping, folds=len(splits))
        return decisions, metrics

    def _predictors(
        self, members: list[Member], splits: list[Split], refinements: Refinements
    ) -> tuple[list[Predictor], list[Case]]:
        """The held-out cases, and who predicts each: the whole ensemble; of folds without a test part, the fold that left it out."""
        if splits[0].test or len(splits) == 1:
            splits, each = splits[:1], len(members)
        else:
            each = self.plan.seeds
        predictors, cases = [], []
        for number, split in enumerate(splits):
            forwards = [member.forward for member in members[number * each : (number + 1) * each]]
            held_out = [self.job.cases[index] for index in split.held_out]
            predictors += [Predictor(forwards, self.plan, refinements)] * len(held_out)
            cases += held_out
        return predictors, cases

    def _package(self, members: list[Member], metrics: Metrics | None, decisions: Decisions, stopped: bool) -> None:
        facts = {
            **self.job.facts,
            "epochs": self.epochs,
            "best_epoch": self.best_epochs[0],
            "seconds": round(time.monotonic() - self.begun, 1),
            "warnings": self.warnings,
        }
        path = self.job.folder / "model.zip"
        weights = [member.network.state_dict() for member in members]
        converted = [member.converted for member in members if member.converted]
        learnt_from = sorted(self.learnt_from) or None
        write_package(path, Package(self.plan, weights, metrics, self.split, facts, decisions, converted, learnt_from))
        read_package(path)  # done means: it loads
        (self.job.folder / LEARNT_FROM).unlink(missing_ok=True)
        self.emit(
            {
                "type": "done",
                "stopped": stopped,
                "package": str(path),
                "metrics": metrics.to_json() if metrics else {},
                "decisions": decisions.to_json(),
                "warnings": self.warnings,
            }
        )

    def _report(self, stage: str, done: int, total: int) -> None:
        """Progress of what is not training. Raises _StoppedError where somebody wants an end."""
        if self.should_stop():
            raise _StoppedError
        event = {"type": "progress", "stage": stage, "done": done, "total": total, "step": 0, "epoch": self.epochs,
                 "epochs": self.epochs or self.plan.epochs, "fraction": 0.0 if stage in ("preparing", "compiling") else 1.0,
                 "eta_seconds": None}  # fmt: skip
        self.emit({**event, "prepared": done / total} if stage == "preparing" else event)

    def _as_part(self, number: int, count: int) -> Event:
        """The events of one of several networks: epochs go on counting, and its share of the whole is a part."""
        before = self.epochs

        def emit(event: dict[str, Any]) -> None:
            if count > 1 and event["type"] in ("start", "epoch"):
                event = {**event, "epoch": event["epoch"] + before}
                if "curve" in event:
                    event["curve"] = [{**point, "epoch": point["epoch"] + before} for point in event["curve"]]
            elif count > 1 and event["type"] == "progress":
                left = event["eta_seconds"] * (count - number)  # the others will take as long
                event = {**event, "fraction": (number + event["fraction"]) / count, "eta_seconds": left,
                         "epoch": event["epoch"] + before, "epochs": event["epochs"] + before,
                         "network": number + 1, "networks": count}  # fmt: skip
            self.emit(event)

        return emit
