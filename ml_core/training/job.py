"""The job file: everything that a training needs, written by the worker or by a notebook."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from ml_core.dataset.case import Case
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.dataset.splits import StoredSplit
from ml_core.documents import Document, OrNone
from ml_core.planning.budget import DEFAULT_SECONDS
from ml_core.planning.plan import Plan
from ml_core.planning.request import TrainingRequest


def _request(values: Any) -> TrainingRequest:
    return values if isinstance(values, TrainingRequest) else TrainingRequest.from_json(values)


RequestField = Annotated[TrainingRequest, PlainValidator(_request), PlainSerializer(TrainingRequest.to_json)]
"""A TrainingRequest as a field of a document. Reading raises ConfigErrors for values that cannot be used."""


@dataclass(frozen=True)
class TrainingJob(Document):
    """The inputs of one training."""

    cases: list[Case]
    """The images and masks, as files on this machine."""
    classes: list[LabelClass]
    """The value, name and color of each class in the masks."""
    fingerprint: Fingerprint
    """The properties of the dataset that a plan is made from."""
    hyperparameters: RequestField
    """The hyperparameters that the user chose. The others are planned."""
    folder: Path
    """The folder for checkpoints, pictures and model.zip."""
    store: Path
    """The folder for decoded cases; several trainings may share it."""
    default_seconds: int = DEFAULT_SECONDS
    """The time budget, if the user chose neither a budget nor a number of epochs."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The origin of the model, for its package: name, dataset, …."""
    split: StoredSplit | None = None
    """A split to reuse, by the ids of the cases."""
    earlier_split: Annotated[StoredSplit | None, OrNone] = None
    """The split of an earlier attempt. It is used if that attempt left a checkpoint."""
    warm_start: Path | None = None
    """The package of a model whose weights the training starts from."""
    plan: Annotated[Plan | None, OrNone] = None
    """The plan of an earlier attempt. It is used if that attempt left a checkpoint, which fits only this plan."""
    batch_limit: int | None = None
    """The largest batch that is allowed, after memory ran out with a larger one."""
    caveats: list[str] = field(default_factory=list)
    """Sentences that are put first among the warnings of the model."""

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        """Read a job file."""
        return cls.from_json(json.loads(path.read_text()))

    @property
    def has_checkpoints(self) -> bool:
        """Whether an earlier attempt left weights that the training can go on from."""
        return any(self.folder.rglob("*.safetensors"))
