"""What can wait until after the search: large blocks are merged, rid of dead rows and compressed, in a thread.

A search publishes each change of a collection at once, as a small block and marks for the dead. Here such a matrix is
brought into good order, one block at a time, beside the searches: the new block takes the place of the old ones when it
is done, and rows that have died meanwhile are marked in it.
"""

import logging
import threading
from dataclasses import replace

from pgvector_service.memory.cache import Cache
from pgvector_service.ranking import compression
from pgvector_service.ranking.blocks import Block
from pgvector_service.ranking.matrix import merged

log = logging.getLogger(__name__)


class Upkeep:
    """One thread that looks after the collections that it is told of.

    `recall_target` 1 leaves all searches exact. `threads` is how many a search may use.
    """

    def __init__(self, cache: Cache, recall_target: float, threads: int) -> None:
        self._cache = cache
        self._target = recall_target
        self._threads = threads
        self._wake = threading.Condition()
        # The names as keys, in the order in which they came.
        self._untidy: dict[str, None] = {}
        self._stopped = False
        self._thread: threading.Thread | None = None

    def look_after(self, name: str) -> None:
        """Note that a collection has changed; returns at once."""
        with self._wake:
            if self._stopped:
                return
            self._untidy[name] = None
            if self._thread is None:
                # A daemon: a block in the making is no reason to keep a process from ending.
                self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
                self._thread.start()
            self._wake.notify()

    def stop(self) -> None:
        """End after the block that is being made, without waiting for it."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._untidy or self._stopped):
                    self._wake.wait()
                if self._stopped:
                    return
                name = next(iter(self._untidy))
                del self._untidy[name]
            try:
                if self._improve(name):
                    self.look_after(name)
            except Exception:
                # The collection goes on being searched as it is.
                log.exception("the upkeep of a collection failed")

    def _improve(self, name: str) -> bool:
        """Make one block of a collection better; False when there is nothing to do."""
        known = self._cache.peek(name)
        if known is None:
            return False
        collection, matrix = known
        uncompressed = ((block,) for block in matrix.blocks if block.codes is None and self._compressible(block))
        old = matrix.untidy() or next(uncompressed, ())
        if not old:
            return False
        new = merged(old)
        if self._compressible(new):
            samples = matrix.sample(compression.SAMPLES)
            compressed = compression.compressed(new, samples, collection.metric, self._target, self._threads)
            new = replace(new, codes=compressed)
        return self._cache.replace(name, old, new)

    def _compressible(self, block: Block) -> bool:
        # Codes that find no room now would be made again after every write.
        worthwhile = self._target < 1 and compression.worthwhile(block)
        return worthwhile and self._cache.has_room(compression.expected_bytes(block))
