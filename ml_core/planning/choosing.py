"""A plan's values one by one: the user's where there is one, else the planned one with its reason."""

from __future__ import annotations

from typing import Any

from ml_core.planning.hyperparameters import Hyperparameters


class Chooser:
    """Takes the user's value where there is one, else the planned one with its reason."""

    def __init__(self, wanted: Hyperparameters) -> None:
        self.wanted, self.reasons = wanted, dict[str, str]()

    def __call__(self, name: str, planned: Any, reason: str) -> Any:
        asked = getattr(self.wanted, name)
        self.reasons[name] = "You chose it." if asked is not None else reason
        return planned if asked is None else asked
