"""Errors that say what is wrong and what to do about it."""

from __future__ import annotations

import errno

DISK_FULL = "disk_full"  # the code of an error that passes when there is room again


class MLError(Exception):
    """A failure that a user can act on.

    `code` is a stable machine word, `reason` a sentence naming what is wrong, `cure` a sentence saying what to do.
    `file` is set by whoever knows which file of the user's it is about.
    """

    file: str = ""

    def __init__(self, code: str, reason: str, cure: str = "") -> None:
        self.code = code
        self.reason = reason
        self.cure = cure
        super().__init__(f"{reason} {cure}".strip())


class ImageError(MLError):
    """A file that cannot be used as an image or a mask."""


class ConfigError(MLError):
    """A hyperparameter, plan or package that cannot be used. `code` names the field where there is one."""


class TrainingError(MLError):
    """A training that cannot start or go on."""


def is_full_disk(error: BaseException) -> bool:
    """Whether something could not be written for want of room. safetensors tells it in words only."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return type(error).__name__ == "SafetensorError" and "os error 28" in str(error)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "memory" in str(error).lower()


def explained(error: Exception) -> TrainingError | None:
    """What PyTorch says in its own words, where a user can do something about it."""
    text = str(error).lower()
    if is_out_of_memory(error):
        cure = "Choose a smaller batch or patch size, or a smaller encoder."
        return TrainingError("out_of_memory", "There was not enough memory for this training.", cure)
    if "more than 1 value per channel" in text:
        cure = "Choose a batch size of 2 or more, or larger patches."
        return TrainingError("batch_too_small", "The batch is too small for this architecture.", cure)
    return None
