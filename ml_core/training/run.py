"""Runs one whole training: a job goes in, events come out, and at the end there is a model package.

The stages are: plan, prepare, train, refine and evaluate, package.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from ml_core.cases.store import StoredCase, open_store
from ml_core.dataset.case import Case
from ml_core.dataset.splits import Split, StoredSplit
from ml_core.errors import TrainingError, explained
from ml_core.files import size_of
from ml_core.measures.results import Metrics
from ml_core.planning.budget import Budget, Stage
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.rules import make_plan
from ml_core.prediction.decisions import Decisions, Refinements
from ml_core.prediction.package import LEARNT_FROM, Package, read_package, write_package
from ml_core.prediction.predictor import Predictor, network_of
from ml_core.training.ensemble import Trained, parts_of, train_networks
from ml_core.training.evaluation import caveats, evaluate
from ml_core.training.events import Done, EstimateMade, OnEvent, PlanMade, Reporter, StoppedError, Stopping
from ml_core.training.job import TrainingJob
from ml_core.training.preflight import check_disk, fit_into_memory, lower_batch, rehearse
from ml_core.training.refinement import Member, refine
from ml_core.training.split import order_to_read, same_again, split_job, stored_split, unseen_classes
from ml_core.training.state import epoch_of, load_weights, read_warm_start


def run(job: TrainingJob, *, on_event: OnEvent, should_stop: Callable[[], bool], begun: float | None = None) -> None:
    """Run the job. The last event is `Done`.

    should_stop: called between steps; True ends the training with a package of the best weights. begun: the moment from
    which the time budget counts, by time.monotonic; None for now. Raises MLError if the training fails.
    """
    begun = time.monotonic() if begun is None else begun
    try:
        on_event(_run(job, Reporter(on_event, should_stop, job.caveats), begun))
    except (RuntimeError, MemoryError) as error:
        explained_error = explained(error)
        if explained_error is None:
            raise
        raise explained_error from error


def package_best(job: TrainingJob) -> Done:
    """Package the best weights in the checkpoints of a training that was stopped or killed.

    The job needs its plan, split, classes and fingerprint, but no cases, so nothing is measured.
    Raises TrainingError if there are no weights.
    """
    reporter = Reporter(lambda event: None, lambda: False, job.caveats)
    plan = _choose_plan(job, reporter)
    marks_file = job.folder / LEARNT_FROM
    learnt_from = frozenset(json.loads(marks_file.read_text())) if marks_file.exists() else frozenset[str]()
    budget = Budget(plan.time_budget_seconds, time.monotonic())
    planned = Planned(plan, [], job.split or StoredSplit(), budget, learnt_from)
    trained = _trained_before(job, plan)
    if trained is None:
        raise TrainingError("no_weights", "No epoch was finished, so there are no weights to keep.", "Train again.")
    return _package(job, planned, trained, Refined(), reporter)


def _run(job: TrainingJob, reporter: Reporter, begun: float) -> Done:
    planned = _plan(job, reporter, begun)
    trained: Trained | None
    try:
        prepared = _prepare(job, planned, reporter)
        planned = replace(planned, learnt_from=planned.learnt_from | prepared.learnt_from, budget=prepared.budget)
        parts = parts_of(planned.plan, job.cases, planned.splits, prepared.stored, job.folder)
        trained = train_networks(planned.plan, parts, planned.budget, reporter, prepared.warm_start)
    except StoppedError:
        trained = None
    if trained is None or trained.stopped:
        reporter.tell(Stopping())
    if trained is None or not trained.members:
        # This attempt was stopped before its first epoch ended; an earlier one may have got further.
        trained = _trained_before(job, trained.plan if trained else planned.plan)
    if trained is None:
        return Done(True, None, None, Decisions(), reporter.warnings)
    refined = Refined()
    if not trained.stopped:
        try:
            refined = _refine_and_evaluate(job, planned, trained, reporter)
        except StoppedError:
            trained = replace(trained, stopped=True)
    return _package(job, planned, trained, refined, reporter)


@dataclass(frozen=True)
class Planned:
    """The result of planning: what will be trained, on which cases, and in what time."""

    plan: Plan
    splits: list[Split]
    """One split, or one for each fold, by the positions of the job's cases."""
    stored_split: StoredSplit
    """The same splits, by the ids of the cases."""
    budget: Budget
    learnt_from: frozenset[str]
    """Marks (Case.mark) of the images that the networks, or the model they start from, learn from."""


def _plan(job: TrainingJob, reporter: Reporter, begun: float) -> Planned:
    """Make the plan and the splits, and check that the training fits onto this machine.

    Raises MLError if the chosen hyperparameters do not suit the data, or if memory or disk are too small.
    """
    plan, lowered = fit_into_memory(_choose_plan(job, reporter), Machine.here())
    job.store.mkdir(parents=True, exist_ok=True)
    check_disk(plan, job.cases, job.folder, job.store)
    if lowered:
        reporter.note(lowered)
    earlier = job.earlier_split if job.has_checkpoints else None
    splits = same_again(job.cases, earlier) if earlier else None
    if splits is None:
        splits = split_job(job.cases, plan, job.hyperparameters, job.split, job.store)
    learnt_from = frozenset(job.cases[index].mark for split in splits for index in split.train)
    # `package_best` reads this file, because it has no cases. Renaming it makes sure that it is never half-written.
    part = job.folder / f".{LEARNT_FROM}.part"
    part.write_text(json.dumps(sorted(learnt_from)))
    part.replace(job.folder / LEARNT_FROM)
    stored = stored_split(job.cases, splits)
    reporter.tell(PlanMade(plan, stored))
    return Planned(plan, splits, stored, Budget(plan.time_budget_seconds, begun), learnt_from)


def _choose_plan(job: TrainingJob, reporter: Reporter) -> Plan:
    """The plan of an earlier attempt if there is a checkpoint to go on from, otherwise a new plan."""
    plan = make_plan(
        job.hyperparameters, job.fingerprint, job.classes, Machine.here(), default_seconds=job.default_seconds
    )
    if job.plan and job.has_checkpoints:
        plan = plan.continuing(job.plan)
    if job.batch_limit and job.batch_limit < plan.batch_size:
        text = f"The batch was lowered from {plan.batch_size} to {job.batch_limit}, since memory ran out."
        plan = lower_batch(plan, job.batch_limit, text)
        reporter.warn(text)
    return plan


@dataclass(frozen=True)
class Prepared:
    """The result of preparing: everything that the training begins with."""

    stored: dict[int, StoredCase]
    """Decoded cases by their position among the job's cases, without those of the test part."""
    budget: Budget
    """The budget, which now has its estimate."""
    warm_start: dict[str, Tensor] | None
    """The weights of the earlier model to start from; None if there is none."""
    learnt_from: frozenset[str]
    """Marks (Case.mark) of the images that the earlier model learnt from."""


def _prepare(job: TrainingJob, planned: Planned, reporter: Reporter) -> Prepared:
    """Decode the cases, estimate the time, and read the model to start from.

    Raises StoppedError if somebody stops the training.
    """
    stored = _decode(job, planned, reporter)
    first = planned.splits[0]
    held_out = sorted((job.cases[index] for index in first.held_out), key=lambda case: size_of(case.image))
    estimate = rehearse(
        planned.plan,
        [stored[index] for index in first.train if index in stored],
        [stored[index] for index in first.val if index in stored],
        held_out[len(held_out) // 2],
        n_test=len(held_out),
        n_val=len(first.val),
        networks=len(planned.splits) * planned.plan.seeds,
    )
    reporter.tell(EstimateMade(estimate))
    budget = replace(planned.budget, estimate=estimate)
    if job.warm_start is None:
        return Prepared(stored, budget, None, frozenset())
    marks = {job.cases[index].mark for split in planned.splits for index in split.held_out}
    earlier = read_warm_start(job.warm_start, marks)
    if earlier.caveat:
        reporter.note(earlier.caveat)
    return Prepared(stored, budget, earlier.weights, earlier.learnt_from)


def _decode(job: TrainingJob, planned: Planned, reporter: Reporter) -> dict[int, StoredCase]:
    """Decode the cases to learn from and to validate on; returns them by their position.

    If the time budget is too short for all, those that are decoded are spread evenly over all.
    """
    order, least = order_to_read(planned.splits)
    stored = open_store(
        job.store,
        [job.cases[index] for index in order],
        planned.plan,
        partial(reporter.progress, Stage.PREPARING, epochs=planned.plan.epochs),
        deadline=planned.budget.deadline_of(Stage.PREPARING),
        least=least,
    )
    stored_by_position = dict(zip(order, stored, strict=False))
    if len(stored_by_position) < len(order):
        reporter.note(
            f"Only {len(stored_by_position)} of the {len(order)} cases could be read in the part of the time budget "
            "that is kept for reading, so the model learns from these. They are spread evenly over all. Allow more "
            "time to use more cases."
        )
    train = [stored_by_position[index] for index in planned.splits[0].train if index in stored_by_position]
    if len(planned.splits) == 1 and (warning := unseen_classes(planned.plan, train)):
        reporter.note(warning)
    return stored_by_position


def _trained_before(job: TrainingJob, plan: Plan) -> Trained | None:
    """The networks with the best weights in the checkpoints; None if no epoch was finished."""
    members, epochs = [], []
    for path in sorted(job.folder.rglob("best.safetensors")):
        network = network_of(plan)
        network.load_state_dict(load_weights(path))
        members.append(Member(network.eval(), []))
        epochs.append(epoch_of(path))
    return Trained(plan, members, sum(epochs), epochs[0], stopped=True) if members else None


@dataclass(frozen=True)
class Refined:
    """What was measured after the training; empty if it was stopped before."""

    decisions: Decisions = field(default_factory=Decisions)
    metrics: Metrics | None = None


def _refine_and_evaluate(job: TrainingJob, planned: Planned, trained: Trained, reporter: Reporter) -> Refined:
    """Choose the refinements, then evaluate the held-out cases. Raises StoppedError if somebody stops the training."""
    report = partial(reporter.progress, epoch=trained.epochs, epochs=trained.epochs)
    decisions = refine(trained.members, trained.plan, planned.budget, partial(report, Stage.REFINING))
    pictures = job.folder / "cases"
    pictures.mkdir(exist_ok=True)
    predictors, cases = _predictors(job.cases, planned.splits, trained, decisions.refinements())
    metrics = evaluate(
        predictors,
        cases,
        evaluated_on="test" if planned.splits[0].test else "val",
        pictures=pictures,
        on_case=partial(report, Stage.EVALUATING),
        deadline=planned.budget.deadline_of(Stage.EVALUATING),
    )
    reporter.warn(*caveats(metrics, grouping=planned.splits[0].grouping, folds=len(planned.splits)))
    return Refined(decisions, metrics)


def _predictors(
    cases: list[Case], splits: list[Split], trained: Trained, refinements: Refinements
) -> tuple[list[Predictor], list[Case]]:
    """The predictor of each held-out case, and these cases.

    Without a test part, a case of a cross-validation is predicted by the networks of the fold that did not learn from
    it. Otherwise all networks predict it together.
    """
    if splits[0].test or len(splits) == 1:
        splits, each = splits[:1], len(trained.members)
    else:
        each = trained.plan.seeds
    predictors, held_out = [], []
    for number, split in enumerate(splits):
        forwards = [member.forward for member in trained.members[number * each : (number + 1) * each]]
        left_out = [cases[index] for index in split.held_out]
        predictors += [Predictor(forwards, trained.plan, refinements)] * len(left_out)
        held_out += left_out
    return predictors, held_out


def _package(job: TrainingJob, planned: Planned, trained: Trained, refined: Refined, reporter: Reporter) -> Done:
    """Write model.zip and read it again, because a training is done only if its model can be loaded."""
    facts = {
        **job.facts,
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "seconds": round(planned.budget.used(), 1),
        "warnings": reporter.warnings,
    }
    path = job.folder / "model.zip"
    package = Package(
        plan=trained.plan,
        members=[member.network.state_dict() for member in trained.members],
        metrics=refined.metrics,
        split=planned.stored_split,
        facts=facts,
        decisions=refined.decisions,
        converted=[member.converted for member in trained.members if member.converted],
        learnt_from=sorted(planned.learnt_from) or None,
    )
    write_package(path, package)
    read_package(path)
    (job.folder / LEARNT_FROM).unlink(missing_ok=True)
    return Done(trained.stopped, str(path), refined.metrics, refined.decisions, reporter.warnings)
