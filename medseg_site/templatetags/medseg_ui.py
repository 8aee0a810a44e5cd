"""Template filters that write numbers, times and states as people read them."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from django import template

from medseg_site.shared.base import text

register = template.Library()

COLOURS = {
    "ready": "green",
    "completed": "green",
    "uploaded": "azure",
    "training": "azure",
    "running": "azure",
    "queued": "secondary",
    "cancelled": "yellow",
    "error": "red",
    "failed": "red",
}
# A page shows this in place of a number that is undefined.
NOTHING = "–"


@register.filter
def status_colour(status: str) -> str:
    return COLOURS.get(status, "secondary")


@register.filter
def status_text(row: Any) -> str:
    """The status of a row in words. "uploaded" becomes what the dataset waits for, and a cancel is "stopping"."""
    if row.status == "uploaded":
        return "being checked" if row.claim_token else "waiting for its check"
    if row.is_active and row.cancel_requested:
        return "stopping"
    return str(row.status)


@register.filter
def is_defined(value: Any) -> bool:
    """Whether the value is a finite number."""
    return _is_number(value)


@register.filter
def score(value: Any) -> str:
    """A number with three decimals, such as 0.913, or a dash when it is undefined."""
    return f"{value:.3f}" if _is_number(value) else NOTHING


@register.filter
def distance(value: Any) -> str:
    """A number with one decimal, such as 2.4, or 0.0112 where one decimal would show nothing; a dash when undefined."""
    if not _is_number(value):
        return NOTHING
    return f"{value:.1f}" if value == 0 or abs(value) >= 0.05 else f"{value:.3g}"


@register.filter
def volume(value: Any) -> str:
    """A volume with two decimals, such as 1.50, or 3.02e-07 where two would show nothing; a dash when undefined."""
    if not _is_number(value):
        return NOTHING
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.3g}"


@register.filter
def amount(value: Any) -> str:
    """A size with three significant digits, such as 0.52. From 100 on it has all its whole digits, such as 1,240."""
    if not _is_number(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@register.filter
def percent(fraction: Any) -> str:
    """A fraction from 0 to 1 in percent, such as 12.3 %. A fraction that would round to zero is "< 0.1 %"."""
    if not _is_number(fraction):
        return NOTHING
    if 0 < fraction < 0.001:
        return "< 0.1 %"
    return f"{fraction * 100:.1f} %"


@register.filter
def whole_percent(fraction: Any) -> int:
    """A fraction as a whole number from 0 to 100, for progress bars."""
    return round(min(1.0, max(0.0, fraction)) * 100) if _is_number(fraction) else 0


@register.filter
def duration(seconds: Any) -> str:
    """Seconds as people say them, such as 45 s, 3 min 20 s or 2 h 5 min."""
    if not _is_number(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@register.filter
def times(sizes: Any) -> str:
    """A list of sizes, such as [512, 512], as 512 × 512."""
    if not isinstance(sizes, (list, tuple)) or not sizes:
        return NOTHING
    return " × ".join(f"{size:.4g}" if isinstance(size, float) else str(size) for size in sizes)


@register.filter
def count_of(number: int, words: str) -> str:
    """A number with its noun, such as "3 images" from 3 and "image".

    `words` is "entry,entries" when the plural is not the singular with an s.
    """
    one, _, many = words.partition(",")
    return text.count_of(number, one, many)


@register.filter
def megabytes(size: Any) -> str:
    """A size in MB as KB, MB or GB, whichever reads best."""
    if not _is_number(size):
        return NOTHING
    if size >= 1024:
        return f"{size / 1024:.1f} GB"
    return f"{size:.1f} MB" if size >= 0.1 else f"{size * 1024:.0f} KB"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@register.filter
def moment(written: str) -> str:
    """An ISO 8601 time as people read it, in UTC to the second."""
    try:
        return datetime.fromisoformat(written).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return written
