"""What a training needs, as the worker or a notebook writes it down."""

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
"""A request in a document, in its own form. Reading raises ConfigErrors for values that cannot be used."""


@dataclass(frozen=True)
class TrainingJob(Document):
    """One training."""

    cases: list[Case]
    """The images and masks, as files on this machine."""
    classes: list[LabelClass]
    """What the masks' values stand for: value, name, color."""
    fingerprint: Fingerprint
    """What the dataset is like."""
    hyperparameters: RequestField
    """What was asked for; the rest is planned."""
    folder: Path
    """It gets checkpoints, pictures and model.zip."""
    store: Path
    """It gets the decoded cases; several trainings may share it."""
    default_seconds: int = DEFAULT_SECONDS
    """The time budget where neither a budget nor a number of epochs was asked for."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the package says of where it comes from: name, dataset, …."""
    split: StoredSplit | None = None
    """A split to be reused, by ids."""
    earlier_split: Annotated[StoredSplit | None, OrNone] = None
    """That of an earlier attempt; it is kept where that attempt left a checkpoint."""
    warm_start: Path | None = None
    """A package to take weights from."""
    plan: Annotated[Plan | None, OrNone] = None
    """That of an earlier attempt; it is kept where that attempt left a checkpoint, whatever this machine would plan."""
    batch_limit: int | None = None
    """The largest batch that fitted into memory after all."""
    salvage: bool = False
    """Train no more, and package the best weights of the checkpoints."""
    caveats: list[str] = field(default_factory=list)
    """Sentences that the model's warnings begin with."""

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        return cls.from_json(json.loads(path.read_text()))

    @property
    def has_checkpoints(self) -> bool:
        """Whether an earlier attempt left weights to go on from."""
        return any(self.folder.rglob("*.safetensors"))
