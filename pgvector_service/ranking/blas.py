"""Products of matrices, one at a time and with a bounded number of threads."""

import threading

import numpy as np
from threadpoolctl import ThreadpoolController

from pgvector_service.arrays import Rows

# A product of fewer multiplications takes less than a millisecond, and is made by one thread.
SMALL_PRODUCT = 2**24
# A larger product lets others in after so many bytes of rows, a few milliseconds.
PRODUCT_BYTES = 32 * 2**20


class _Blas:
    """The threads that numpy makes a product with, for one product at a time.

    Several at a time fight for the cores: with 20,000 x 128 rows on 2 cores, 16 threads did 40 searches/s, and 600 to
    720 in turn (one thread alone 1,560). And threads that have helped spin for a while afterwards, which took 0.45 ms
    of a core from each search of 1,000 rows.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._most = max((library.get_num_threads() for library in self._libraries), default=1)

    def limit(self, threads: int) -> None:
        """Use at most so many threads from now on."""
        with self._lock:
            self._most = threads

    def product(self, queries: Rows, rows: Rows) -> Rows:
        """queries @ rows.T"""
        threads = 1 if len(queries) * rows.size < SMALL_PRODUCT else self._most
        step = max(1, PRODUCT_BYTES // (4 * rows.shape[1]))
        parts = [self._part(queries, rows[start : start + step], threads) for start in range(0, len(rows), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _part(self, queries: Rows, rows: Rows, threads: int) -> Rows:
        # Products that overflow belong to norms that are not safe, and are not looked at.
        with self._lock, np.errstate(over="ignore", invalid="ignore"):
            for library in self._libraries:
                # Asked each time, for half a microsecond: others in the process may set it too.
                if library.get_num_threads() != threads:
                    library.set_num_threads(threads)
            dots: Rows = queries @ rows.T
            return dots


_blas = _Blas()
limit_threads, product = _blas.limit, _blas.product
