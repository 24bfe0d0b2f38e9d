"""Worker processes that do not run the caller's script again.

A spawned process imports the main module of the one that made it. A script of a few lines, without ``if __name__ ==
"__main__":``, would begin itself anew in each of them, and end as a broken pool. What works here lies in modules of this
package, so that nothing of the script is needed; a tokenizer class that a script defines itself cannot be sent (``workers=1``).
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from multiprocessing.context import SpawnContext, SpawnProcess

_STARTING = threading.Lock()


class _Process(SpawnProcess):
    def start(self) -> None:
        with _without_main():
            super().start()


class _Context(SpawnContext):
    Process = _Process


SPAWN = _Context()  # for concurrent.futures.ProcessPoolExecutor


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """While a process is started, the main module is one without a file: there is nothing to import (multiprocessing.spawn)."""
    main = sys.modules["__main__"]
    with _STARTING:
        kept = {name: main.__dict__[name] for name in ("__spec__", "__file__") if name in main.__dict__}
        main.__dict__["__spec__"] = None
        main.__dict__.pop("__file__", None)
        try:
            yield
        finally:
            main.__dict__.update(kept)
