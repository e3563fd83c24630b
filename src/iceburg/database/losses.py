"""What a store had lost before it was migrated, as it is kept and reported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from iceburg.mappings.json_value import usable_text

if TYPE_CHECKING:
    from iceburg.sources.chroma_loss import Loss


def describe_losses(losses: Iterable[Loss]) -> list[dict[str, Any]]:
    """Write losses as they are kept and reported; NUL and lone surrogates, which JSON in PostgreSQL cannot hold, go."""
    return [
        {
            "kind": loss.kind,
            "count": len(loss.ids),
            "ids": [usable_text(record_id) for record_id in loss.ids],
            "detail": usable_text(loss.detail),
        }
        for loss in losses
    ]
