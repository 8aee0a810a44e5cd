"""The self-contained model: one ZIP with weights, plan, metrics, split and a card. Holds no pickle."""

from __future__ import annotations

import json
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ml_core.card import model_card
from ml_core.errors import ConfigError
from ml_core.planning import Plan

FORMAT = 1


@dataclass(frozen=True)
class Package:
    """weights: tensors by name, as the network's state_dict. metrics and split: as the trainer gave them."""

    plan: Plan
    weights: dict[str, Tensor]
    metrics: dict[str, Any]
    split: dict[str, Any]
    facts: dict[str, Any]


def write_package(path: Path, package: Package) -> None:
    """Write the ZIP, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    documents = {
        "package.json": {"format": FORMAT, **package.facts},
        "plan.json": package.plan.to_dict(),
        "metrics.json": package.metrics,
        "split.json": package.split,
    }
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, document in documents.items():
            archive.writestr(name, json.dumps(to_json(document), indent=1))
        archive.writestr("README.md", model_card(package.plan, to_json(package.metrics), package.facts))
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in package.weights.items()}
        archive.writestr("weights.safetensors", save_tensors(tensors))
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
            return Package(
                plan=Plan.from_dict(json.loads(archive.read("plan.json"))),
                weights=load_tensors(archive.read("weights.safetensors")),
                metrics=json.loads(archive.read("metrics.json")),
                split=json.loads(archive.read("split.json")),
                facts=facts,
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
