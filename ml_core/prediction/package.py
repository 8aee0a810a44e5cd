"""The model package: one ZIP with weights, plan, metrics, split and model card.

It contains no pickle, because loading a pickle from a stranger runs the stranger's code.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ml_core.dataset.splits import StoredSplit
from ml_core.documents import to_json
from ml_core.errors import ConfigError
from ml_core.measures.results import Metrics
from ml_core.planning.plan import Plan
from ml_core.prediction.card import model_card
from ml_core.prediction.decisions import Decisions

FORMAT = 2
LEARNT_FROM = "learnt_from.json"


@dataclass(frozen=True)
class Package:
    """A trained model and everything that is known about it."""

    plan: Plan
    """How images are preprocessed, and which network they go through."""
    members: list[dict[str, Tensor]]
    """The state_dict of each network; an ensemble has several."""
    metrics: Metrics | None
    """The metrics of the held-out cases; None if the training was stopped before its evaluation."""
    split: StoredSplit
    """Which cases the model learnt from and which were held out, by their ids."""
    facts: dict[str, Any]
    """The origin of the model (name, dataset, epochs, …) and its warnings."""
    decisions: Decisions = field(default_factory=Decisions)
    """What was decided on the validation cases after the training."""
    converted: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Each network as an OpenVINO model (xml, weights); empty if the model runs in PyTorch."""
    learnt_from: list[str] | None = None
    """Marks (Case.mark) of the images that the networks, or their warm start, learnt from; None if unknown."""


def write_package(path: Path, package: Package) -> None:
    """Write the ZIP. A failure leaves no half-written file at `path`."""
    part = path.with_name(f".{path.name}.part")
    documents = {
        "package.json": {
            "format": FORMAT,
            "members": len(package.members),
            "converted": len(package.converted),
            **package.facts,
        },
        "plan.json": package.plan,
        "metrics.json": package.metrics or {},
        "split.json": package.split,
        "decisions.json": package.decisions,
        **({} if package.learnt_from is None else {LEARNT_FROM: package.learnt_from}),
    }
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, document in documents.items():
            archive.writestr(name, json.dumps(to_json(document), indent=1))
        card = model_card(package.plan, package.metrics, package.facts, package.decisions)
        archive.writestr("README.md", card)
        for index, member in enumerate(package.members):
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in member.items()}
            archive.writestr(f"weights_{index}.safetensors", save_tensors(tensors))
        for index, (xml, weights) in enumerate(package.converted):
            archive.writestr(f"openvino_{index}.xml", xml)
            archive.writestr(f"openvino_{index}.bin", weights)
    os.replace(part, path)


def read_package(path: Path) -> Package:
    """Read a package. Raises ConfigError if the file is damaged, or has a format that this version does not know."""
    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read("package.json"))
            if facts.get("format") != FORMAT:
                raise ConfigError(
                    "package",
                    f"The model package has format {facts.get('format')!r}.",
                    "Update the platform, or train again.",
                )
            members = [f"weights_{index}.safetensors" for index in range(facts["members"])]
            converted = [f"openvino_{index}" for index in range(facts["converted"])]
            metrics = json.loads(archive.read("metrics.json"))
            return Package(
                plan=Plan.from_json(json.loads(archive.read("plan.json"))),
                members=[load_tensors(archive.read(name)) for name in members],
                decisions=Decisions.from_json(json.loads(archive.read("decisions.json"))),
                converted=[(archive.read(f"{name}.xml"), archive.read(f"{name}.bin")) for name in converted],
                metrics=Metrics.from_json(metrics) if metrics else None,
                split=StoredSplit.from_json(json.loads(archive.read("split.json"))),
                facts=facts,
                learnt_from=json.loads(archive.read(LEARNT_FROM)) if LEARNT_FROM in archive.namelist() else None,
            )
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, OSError, SafetensorError) as error:
        raise ConfigError(
            "package", f"The model package cannot be read: {error}", "Download it again, or train again."
        ) from error
