"""What users are meant to read: the one exception, a line that says what is wrong and what to do; and warnings, once each."""

import contextlib
import logging
from collections.abc import Iterator


class BertJaxError(Exception):
    """Wrong input, configuration or environment. The command line prints it as one line and exits with status 1."""


@contextlib.contextmanager
def each_warning_once(templates: set[str] | None = None) -> Iterator[None]:
    """What is said of a file, a checkpoint or a seed is not said again, word for word, when it is read again; of parts of a
    stream, which share their ``templates``, not again with other numbers."""
    said = set() if templates is None else templates

    def new(record: logging.LogRecord) -> bool:
        line = record.getMessage() if templates is None else record.msg
        return not (line in said or said.add(line))

    logger = logging.getLogger("bert_jax")
    logger.addFilter(new)
    try:
        yield
    finally:
        logger.removeFilter(new)
