"""Records whose rows in a damaged ``embeddings`` table are lost, known by the index and the queue alone."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence

from iceburg.sources.chroma_pages import Gap
from iceburg.sources.chroma_queue import DELETE, Operation
from iceburg.sources.chroma_tables import Row

#: Rows of records that only the queue still knows begin below this number, those of the index above it.
_QUEUE_ROWS = -(1 << 62)


def find_unlisted(
    operations: Sequence[Operation],
    labels: Mapping[str, int],
    removed: Iterable[str],
    listed: Mapping[str, int],
    gaps: Sequence[Gap],
) -> list[Row]:
    """Return the records that the tables must have had in one of their gaps, with negative numbers.

    Chroma numbers rows, labels and positions in the order of arrival. So an id that arrived between two others whose
    rows have no gap between them was not lost but deleted.

    Parameters
    ----------
    operations
        The collection's operations in the queue, in order.
    labels
        Id to label of the index.
    removed
        Ids that the queue has deleted from the index.
    listed
        Id to row of the records that the tables still have.
    gaps
        Where rows of the table are lost.
    """
    gone = set(removed)
    in_index = {identity: label for identity, label in labels.items() if identity not in gone}
    in_queue: dict[str, int] = {}
    for op in operations:
        if op.operation == DELETE:
            in_index.pop(op.id, None)
            in_queue.pop(op.id, None)
        else:
            in_queue.setdefault(op.id, op.seq)
    rows = {i: _QUEUE_ROWS + in_queue[i] for i in _in_gaps(in_queue, listed, gaps)}
    # The queue is asked first: it knows the order of arrival better than 0.x labels do.
    undecided = {i: label for i, label in in_index.items() if i not in in_queue or i in rows or i in listed}
    rows.update({i: -1 - in_index[i] for i in _in_gaps(undecided, listed, gaps)})
    return sorted((Row(row, identity, None) for identity, row in rows.items()), key=lambda row: row.row)


def _in_gaps(order: Mapping[str, int], listed: Mapping[str, int], gaps: Sequence[Gap]) -> list[str]:
    """Return the ids that are not listed and arrived where rows are lost."""
    known = sorted((number, listed[identity]) for identity, number in order.items() if identity in listed)
    numbers = [number for number, _ in known]
    found = []
    for identity, number in order.items():
        if identity in listed:
            continue
        at = bisect.bisect(numbers, number)
        before = known[at - 1][1] if at else None
        after = known[at][1] if at < len(known) else None
        low, high = (before, after) if before is None or after is None or before < after else (after, before)
        if any((high is None or gap.after < high - 1) and _reaches(gap, low) for gap in gaps):
            found.append(identity)
    return found


def _reaches(gap: Gap, low: int | None) -> bool:
    return gap.before is None or low is None or gap.before > low + 1
