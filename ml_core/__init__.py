"""Segmentation of medical images, from a folder of images and masks to a model.

    import ml_core
    model = ml_core.train("images", "masks", out="model", time_budget_seconds=120)
    labels = model.predict("new.png")
    metrics = model.evaluate("other_images", "other_masks")

docs/NOTEBOOK.md explains each of them. The package imports them on first use, because a web process imports parts of
this package and must not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_core.front.api import Model, evaluate, predict, train

__all__ = ["Model", "evaluate", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("ml_core.front.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
