"""Functions that read typed environment variables. Only settings.py uses them.

They raise ImproperlyConfigured for a value that cannot be used.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def text(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def flag(name: str, *, default: bool) -> bool:
    value = text(name).lower()
    if not value:
        return default
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise ImproperlyConfigured(f"{name}={value!r} is neither true nor false. Use 1 or 0.")


def integer(name: str, default: int, *, minimum: int = 0) -> int:
    value = text(name)
    if not value:
        return default
    try:
        number = int(value)
    except ValueError:
        problem = f"{name}={value!r} is not a whole number. Use digits only, such as {default}."
        raise ImproperlyConfigured(problem) from None
    if number < minimum:
        raise ImproperlyConfigured(f"{name}={number} is too small. Use {minimum} or more.")
    return number


def words(name: str, default: list[str]) -> list[str]:
    """The words of a comma-separated list."""
    return [word.strip() for word in text(name).split(",") if word.strip()] or default


def secret_key(data_dir: Path, *, debug: bool) -> str:
    """SECRET_KEY from the environment, or else a random key that is made once and kept in the data folder."""
    if key := text("SECRET_KEY"):
        return key
    if debug:
        return "insecure-key-for-debugging-only"
    path = data_dir / "secret_key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"secret_key.{os.getpid()}")
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_urlsafe(50))
        try:
            # The link fails when another process was faster. The key of that process is then used.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_text().strip()
