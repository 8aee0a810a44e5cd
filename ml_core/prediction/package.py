"""The self-contained model: one ZIP with weights, plan, metrics, split and a card. Holds no pickle."""

from __future__ import annotations

import json
import math
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ml_core.errors import ConfigError
from ml_core.planning.plan import Plan
from ml_core.prediction.card import model_card
from ml_core.prediction.postprocessing import Postprocessing

FORMAT = 2
LEARNT_FROM = "learnt_from.json"


@dataclass(frozen=True)
class Refinements:
    """What a model does beside one pass of its network, because it helped on the validation cases.

    mirroring: "none", "flips" (along all axes) or "flips and turns" (rows and columns swapped as well); answers are averaged.
    """

    mirroring: str = "none"
    postprocessing: Postprocessing | None = None


@dataclass(frozen=True)
class Package:
    """members: tensors by name of each network, as its state_dict (several for an ensemble). metrics and split: as the job gave them.

    decisions: what was measured on the validation cases and what came of it: mirroring, postprocessing, serving, each with its
    numbers. converted: OpenVINO's (xml, weights) of each member, empty where they did not agree with the networks.
    learnt_from: marks of the images that the networks, and the model they started from, learnt from (Case.mark); None where unknown.
    """

    plan: Plan
    members: list[dict[str, Tensor]]
    metrics: dict[str, Any]
    split: dict[str, Any]
    facts: dict[str, Any]
    decisions: dict[str, Any] = field(default_factory=dict)
    converted: list[tuple[bytes, bytes]] = field(default_factory=list)
    learnt_from: list[str] | None = None

    def refinements(self) -> Refinements:
        """What the decisions say is to be done at every prediction."""
        chosen = self.decisions.get("postprocessing", {}).get("used")
        return Refinements(
            mirroring=self.decisions.get("mirroring", {}).get("used", "none"),
            postprocessing=Postprocessing.from_dict(chosen) if chosen else None,
        )


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
        "plan.json": package.plan.to_dict(),
        "metrics.json": package.metrics,
        "split.json": package.split,
        "decisions.json": package.decisions,
        **({} if package.learnt_from is None else {LEARNT_FROM: package.learnt_from}),
    }
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, document in documents.items():
            archive.writestr(name, json.dumps(to_json(document), indent=1))
        card = model_card(package.plan, to_json(package.metrics), package.facts, to_json(package.decisions))
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
            return Package(
                plan=Plan.from_dict(json.loads(archive.read("plan.json"))),
                members=[load_tensors(archive.read(name)) for name in members],
                decisions=json.loads(archive.read("decisions.json")),
                converted=[(archive.read(f"{name}.xml"), archive.read(f"{name}.bin")) for name in converted],
                metrics=json.loads(archive.read("metrics.json")),
                split=json.loads(archive.read("split.json")),
                facts=facts,
                learnt_from=json.loads(archive.read(LEARNT_FROM)) if LEARNT_FROM in archive.namelist() else None,
            )
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, OSError, SafetensorError) as error:
        raise ConfigError(
            "package", f"The model package cannot be read: {error}", "Download it again, or train again."
        ) from error


def to_json(value: Any) -> Any:
    """The same with NaN and infinities as null, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
