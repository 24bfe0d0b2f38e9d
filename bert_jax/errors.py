"""What users are meant to read: the one exception, a line that says what is wrong and what to do; and warnings, once each."""

import contextlib
import errno
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any


class BertJaxError(Exception):
    """Wrong input, configuration or environment. The command line prints it as one line and exits with ``status``: of 1 the
    scripts that keep a run going say that starting it again would not help."""

    status = 1


class CannotSave(BertJaxError):
    """A disk or a network failed for the moment, perhaps: a run may be started again (EX_IOERR of sysexits.h)."""

    status = 74


class CannotRead(BertJaxError):
    """The same of reading."""

    status = CannotSave.status


class NotHeard(BertJaxError):
    """This process heard nothing where the others may have agreed: no save that has failed, but as likely to pass."""

    status = CannotSave.status


def check_several(texts: Any) -> None:
    """Raises BertJaxError for what iterates, but not over texts: one text gives its letters, a dictionary its keys, a table of
    pandas or polars its columns, a set no order."""
    if isinstance(texts, str | bytes):
        raise BertJaxError("texts is a single string: give a list of texts")
    if isinstance(texts, Mapping | set | frozenset) or hasattr(texts, "columns"):
        raise BertJaxError(f"texts is a {type(texts).__name__}: give a list of texts, such as those of a column, or of tuples")


UNFORESEEN = 70  # status for any other exception (EX_SOFTWARE): a device or a library failed, which may pass
_LASTING = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_ALWAYS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


def lasts(error: BaseException) -> bool:
    """Whether an error of the system would come again, however often the same is tried."""
    return isinstance(error, _LASTING) or (isinstance(error, OSError) and error.errno in _ALWAYS)


def out_of_memory(error: BaseException) -> str | None:
    """The line for an exception of a device, or of Python, whose memory did not suffice; None of any other."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return ("the memory of this machine does not suffice: end what else takes it, or give the data in parts, or in shorter "
                f"texts{f' ({text[:200]})' * bool(text)}")
    if "RESOURCE_EXHAUSTED" not in text or isinstance(error, BertJaxError):
        return None
    return ("the memory of the device does not suffice: a smaller batch (train.batch_size, --batch-size), one in parts "
            f"(train.accumulate) or fewer seeds at once may do ({text[:200]})")


def exit_status(error: Exception) -> int:
    """That of a process which ``error`` ends."""
    if isinstance(error, OSError):
        return BertJaxError.status if lasts(error) else CannotSave.status
    return error.status if isinstance(error, BertJaxError) else UNFORESEEN


@contextlib.contextmanager
def each_warning_once(templates: set[str] | None = None, more: str = "") -> Iterator[None]:
    """What is said of a file, a checkpoint or a seed is not said again, word for word, when it is read again; of parts of a
    stream, which share their ``templates`` and are read in one thread, not again with other numbers. ``more``: what is said
    besides."""
    said, thread = set() if templates is None else templates, threading.get_ident()

    def new(record: logging.LogRecord) -> bool:
        if templates is not None and record.thread != thread:
            return True
        line = record.getMessage() if templates is None else record.msg
        if line in said:
            return False
        said.add(line)
        record.msg = f"{record.msg}{more}"
        return True

    logger = logging.getLogger("bert_jax")
    logger.addFilter(new)
    try:
        yield
    finally:
        logger.removeFilter(new)
