"""What filters match of a collection in memory, remembered for as long as its version lasts."""

import threading
from collections import OrderedDict

from pgvector_service.input.filters import Filter
from pgvector_service.ranking.matrix import Matrix

# Of the bytes of a collection, and at least so many.
SHARE, LEAST_BYTES = 1 / 16, 2**18
# What a remembered filter takes beside its text and its rows, as measured.
OVERHEAD_BYTES = 1_000


class FilteredRows:
    """The rows of `matrix` that match each of some filters, those asked for last; shared by threads.

    A selection is the same blocks with other rows marked alive, one byte for each row.
    """

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self._most_bytes = max(LEAST_BYTES, SHARE * matrix.nbytes)
        self._by_filter: OrderedDict[Filter, Matrix] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def get(self, filter: Filter | None) -> Matrix | None:
        """The rows that match, if they are remembered; all without a filter."""
        if filter is None:
            return self.matrix
        with self._lock:
            selected = self._by_filter.get(filter)
            if selected is not None:
                self._by_filter.move_to_end(filter)
            return selected

    def put(self, filter: Filter, selected: Matrix) -> None:
        """Remember the rows that match."""
        with self._lock:
            if filter in self._by_filter:
                return
            self._by_filter[filter] = selected
            self.nbytes += _cost(filter, selected)
            while self.nbytes > self._most_bytes:
                self.nbytes -= _cost(*self._by_filter.popitem(last=False))


def _cost(filter: Filter, selected: Matrix) -> int:
    # A filter as large as a request may be is worth remembering less than many small ones.
    text = len(filter.sql) + sum(len(str(value)) for value in filter.values)
    return OVERHEAD_BYTES + text + sum(block.alive.nbytes for block in selected.blocks if block.alive is not None)
