"""The self-contained model: one ZIP with weights, plan, metrics, split and a card. Holds no pickle."""

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
    """A trained model."""

    plan: Plan
    """How images are made ready, and which network they go through."""
    members: list[dict[str, Tensor]]
    """The tensors of each network by their names, as its state_dict; several for an ensemble."""
    metrics: Metrics | None
    """Of the held-out cases; None where the training was stopped before its evaluation."""
    split: StoredSplit
    """Who was learnt from and who was held out, by the ids of the cases."""
    facts: dict[str, Any]
    """Where it comes from: name, dataset, epochs, …; and the warnings."""
    decisions: Decisions = field(default_factory=Decisions)
    """What is done beside the network, because it helped on the validation cases."""
    converted: list[tuple[bytes, bytes]] = field(default_factory=list)
    """OpenVINO's (xml, weights) of each network; empty where they did not agree with the networks."""
    learnt_from: list[str] | None = None
    """Marks (Case.mark) of the images that the networks, and the model they started from, learnt from; None where unknown."""


def write_package(path: Path, package: Package) -> None:
    """Write the ZIP, whole or not at all."""
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
    """Raises ConfigError when the file is not a whole package of a format that this version knows."""
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
