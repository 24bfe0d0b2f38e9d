"""Small files: written whole or not at all, and JSON that is read with one line where something is wrong with it; and folders
that one process alone writes, and that come whole under their names."""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_jax.errors import BertJaxError, CannotRead, lasts


def write_whole(path: Path, content: str | bytes) -> None:
    """The file holds the old content or the new, never half of it, also when the disk is full or the machine loses power.
    Text is written as UTF-8, and half a surrogate pair, which has no bytes there, as ``\\ud83d``: in JSON that is the same."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON in UTF-8, see :func:`write_whole`."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON value in a file, an object unless another ``kind`` is asked for.

    Raises:
      BertJaxError: the file cannot be read, or is no JSON or nested too deeply, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())  # which knows byte order marks
    except OSError as error:
        kind = BertJaxError if lasts(error) else CannotRead
        raise kind(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BertJaxError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, kind):
        wanted = {dict: "object", list: "list"}[kind]
        raise BertJaxError(f"{path}: a JSON {wanted} is needed, this is a {type(content).__name__}")
    return content


def check_local(path: str | os.PathLike) -> None:
    """Raises BertJaxError where a path is an address, as of a bucket: a folder of that name would be made beside the user."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(path)):  # Path has made one slash of two
        raise BertJaxError(f"{path}: an address is no folder of this machine: mount the bucket, or copy it here first")


def put_in_place(partial: Path, folder: Path, last: str | None = None) -> None:
    """Gives a folder its final name; file by file, the one called ``last`` at the end, where the file system renames no
    folders, as a mounted bucket."""
    try:
        os.rename(partial, folder)
        return
    except OSError:
        if folder.exists():
            raise
    files = [path for path in partial.rglob("*") if path.is_file()]
    try:
        for path in sorted(files, key=lambda path: path == partial / (last or "")):
            target = folder / path.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    except OSError as error:
        raise BertJaxError(f"{folder}: {partial} was whole, and moving it there failed half-way ({error.strerror}): move the "
                           "rest of its files as well" + (f", {last} last" if last else "")) from error
    shutil.rmtree(partial)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes ``folder`` and keeps other runs out of it; the lock ends with the process, however it ends. A file system that has
    no locks keeps nobody out.

    Raises:
      BertJaxError: another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BertJaxError(f"{folder}: another run is writing it: wait for it, or stop it") from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
