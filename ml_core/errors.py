"""Errors that say what is wrong and what to do about it."""

from __future__ import annotations

import errno

# The code of an error that passes once the disk has room again, so the work is worth repeating.
DISK_FULL = "disk_full"


class MLError(Exception):
    """A failure that a user can act on.

    `code` is a stable word for programs. `reason` is a sentence that says what is wrong, and `cure` one that says what
    to do. `file` names the user's file; the caller that knows it sets it, and it is "" until then.
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
    """A hyperparameter, plan or package that cannot be used.

    `code` is the name of the field if one field is at fault.
    """


class TrainingError(MLError):
    """A training that cannot start or cannot continue."""


def count_of(number: int, noun: str) -> str:
    """Put a number before its noun in a message, such as "1 image" or "12,000 images"."""
    return f"{number:,} {noun if number == 1 else f'{noun}s'}"


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed because the disk or the quota is full."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    # safetensors raises its own error without an errno; only the text names error 28 (ENOSPC).
    return type(error).__name__ == "SafetensorError" and "os error 28" in str(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of the machine or the GPU ran out. PyTorch says so only in the text of its errors."""
    return isinstance(error, MemoryError) or "memory" in str(error).lower()


def explained(error: Exception) -> TrainingError | None:
    """Translate an error of PyTorch into one that a user can act on; None if the user can do nothing about it."""
    text = str(error).lower()
    if is_out_of_memory(error):
        cure = "Choose a smaller batch or patch size, or a smaller encoder."
        return TrainingError("out_of_memory", "There was not enough memory for this training.", cure)
    if "more than 1 value per channel" in text:
        cure = "Choose a batch size of 2 or more, or larger patches."
        return TrainingError("batch_too_small", "The batch is too small for this architecture.", cure)
    return None
