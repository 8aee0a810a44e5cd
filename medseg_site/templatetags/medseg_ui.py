"""Small words and numbers for the templates."""

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
NOTHING = "–"


@register.filter
def status_colour(status: str) -> str:
    return COLOURS.get(status, "secondary")


@register.filter
def status_text(row: Any) -> str:
    """The row's status; what "uploaded" means is said as well."""
    if row.status == "uploaded":
        return "being checked" if row.claim_token else "waiting for its check"
    if row.is_active and row.cancel_requested:
        return "stopping"
    return str(row.status)


@register.filter
def is_defined(value: Any) -> bool:
    """Whether it is a number, and not NaN."""
    return _is_number(value)


@register.filter
def score(value: Any) -> str:
    """0.913; a dash where the number is undefined."""
    return f"{value:.3f}" if _is_number(value) else NOTHING


@register.filter
def distance(value: Any) -> str:
    """12.3, or 0.0112 where one decimal would show nothing: micro-CT is measured in micrometres."""
    if not _is_number(value):
        return NOTHING
    return f"{value:.1f}" if value == 0 or abs(value) >= 0.05 else f"{value:.3g}"


@register.filter
def volume(value: Any) -> str:
    """1.50, or 3.02e-07 where two decimals would show nothing."""
    if not _is_number(value):
        return NOTHING
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.3g}"


@register.filter
def amount(value: Any) -> str:
    """1,240 or 0.52: a size in any unit with three digits or all those before the point."""
    if not _is_number(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@register.filter
def percent(fraction: Any) -> str:
    """12.3 % of a fraction; what is there but rounds to nothing is "< 0.1 %"."""
    if not _is_number(fraction):
        return NOTHING
    if 0 < fraction < 0.001:
        return "< 0.1 %"
    return f"{fraction * 100:.1f} %"


@register.filter
def whole_percent(fraction: Any) -> int:
    """0 to 100, for progress bars."""
    return round(min(1.0, max(0.0, fraction)) * 100) if _is_number(fraction) else 0


@register.filter
def duration(seconds: Any) -> str:
    """Such as 45 s, 3 min 20 s, 2 h 5 min."""
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
    """512 × 512 of [512, 512]."""
    if not isinstance(sizes, (list, tuple)) or not sizes:
        return NOTHING
    return " × ".join(f"{size:.4g}" if isinstance(size, float) else str(size) for size in sizes)


@register.filter
def count_of(number: int, words: str) -> str:
    """3 images of 3 and "image"; words: "entry,entries" where the plural is another word."""
    one, _, many = words.partition(",")
    return text.count_of(number, one, many)


@register.filter
def megabytes(size: Any) -> str:
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
