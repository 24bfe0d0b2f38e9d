"""What users are meant to read: the one exception, a line that says what is wrong and what to do; and warnings, once each."""

import contextlib
import logging
import threading
from collections.abc import Iterator


class BertJaxError(Exception):
    """Wrong input, configuration or environment. The command line prints it as one line and exits with status 1."""


@contextlib.contextmanager
def each_warning_once(templates: set[str] | None = None) -> Iterator[None]:
    """What is said of a file, a checkpoint or a seed is not said again, word for word, when it is read again; of parts of a
    stream, which share their ``templates`` and are read in one thread, not again with other numbers."""
    said, thread = set() if templates is None else templates, threading.get_ident()

    def new(record: logging.LogRecord) -> bool:
        if templates is not None and record.thread != thread:
            return True
        line = record.getMessage() if templates is None else record.msg
        return not (line in said or said.add(line))

    logger = logging.getLogger("bert_jax")
    logger.addFilter(new)
    try:
        yield
    finally:
        logger.removeFilter(new)
