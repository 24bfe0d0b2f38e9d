"""Documents as text, streamed from files and TFDS data sets, always in the same order.

What a source is, is told by how it is written:

===========================  =========================================================================================
``corpus/*.txt``, ``a.txt``  text in UTF-8; `documents` says where a document begins
``corpus.txt.gz``            the same, compressed
``dump.jsonl``, ``.jsonl.gz``  one JSON object a line, one document in each; `field` names its text
``tfds:NAME[:SPLIT]``        a TFDS data set that is on disk in array_record format, one document a record, read without
                             TensorFlow; ``NAME`` may end in ``:1.0.0``, a version; ``SPLIT`` defaults to ``train``
===========================  =========================================================================================

``de=PATH``, any of these after a name, says that the documents of this source are in the language of that name.

Nothing is ever held but the document that is being read, and a document of more than 64 MB is cut, with a warning.
"""

import collections
import contextlib
import dataclasses
import glob
import gzip
import json
import logging
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from bert_jax.errors import BertJaxError
from bert_jax.files import check_local

logger = logging.getLogger("bert_jax")

MAX_DOCUMENT = 64 << 20  # characters; what a process holds of the corpus at any moment is a small multiple of this
MAX_JSON_LINE = 2 * MAX_DOCUMENT  # bytes; a line is longer than its text, by its escapes and other fields
BLOCK = 1 << 20  # bytes read at once
LINES_IN_BLOCK = 4096

DOCUMENTS = ("blank", "file", "line", "formfeed")
LANGUAGE = re.compile(r"([A-Za-z][\w-]{0,15})=(.+)", re.DOTALL)
MAX_LANGUAGES = 256  # a document's language is one byte in the store


class Group(NamedTuple):
    """What belongs together: one document, or translations of one, with the number of the first one's language."""

    texts: tuple[str, ...]
    language: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """One file, or one split of a TFDS data set.

    `name` is what messages and manifests show (no folder), `path` a file's path or the text after ``tfds:``, `size` its
    bytes on disk, and `language` the name that was given to its language.
    """

    name: str
    path: str
    size: int
    kind: str  # "text", "json" or "tfds"
    language: str | None = None


def _open_here(path: str) -> BinaryIO:
    return open(path, "rb")


class Corpus:
    """The documents of `specs`, in order; iterate as often as wanted, each time from the start.

    Args:
      specs: paths, globs (sorted, ``**`` allowed) and ``tfds:`` names; or sources that were found before.
      documents: where a document begins in a text file: "blank" (after a blank line, as BERT's own input format has
        it), "file" (nowhere else), "line" (at every line), "formfeed" (at every U+000C), or "prefix:STRING" (at a line
        that starts with STRING, which is dropped). JSONL and TFDS have one document a record whatever is said here.
      field: the field that holds the text, in JSONL and TFDS.
      open_file: opens the path of a file for reading bytes; for paths that are not this machine's.

    Attributes:
      sources: the sources, in order. total_bytes: their size on disk. languages: names in the order in which they came.

    Raises:
      BertJaxError: a path or glob that matches nothing, a data set that is not on disk, bytes that are not UTF-8 text,
        records without the field, sources of which only some have a language; those about contents come while iterating,
        and name the file and the byte or line.
    """

    def __init__(
        self,
        specs: Sequence["str | os.PathLike | Source"],
        *,
        documents: str = "blank",
        field: str = "text",
        open_file: Callable[[str], BinaryIO] = _open_here,
    ):
        if documents not in DOCUMENTS and not documents.startswith("prefix:"):
            raise BertJaxError(f"documents={documents!r}: use one of {', '.join(DOCUMENTS)} or prefix:STRING")
        if documents == "prefix:":
            raise BertJaxError("documents='prefix:': say which string starts a document, as in 'prefix:# doc:'")
        self.documents = documents
        self.field = field
        self._open_file = open_file
        self.sources = [source for spec in specs for source in _expand(spec)]
        if not self.sources:
            raise BertJaxError("no source of text was given: name a file, a glob or tfds:NAME")
        for path, times in collections.Counter(os.path.abspath(source.path) for source in self.sources).items():
            if times > 1:
                logger.warning("%s is given %d times, and so are its documents", path, times)
        unnamed = [source.name for source in self.sources if source.language is None]
        if 0 < len(unnamed) < len(self.sources):
            raise BertJaxError(f"{unnamed[0]}: no language, where other sources have one: write it as in en={unnamed[0]}")
        self.languages = tuple(dict.fromkeys(source.language for source in self.sources if source.language))
        if len(self.languages) > MAX_LANGUAGES:
            raise BertJaxError(f"{len(self.languages)} languages: a token store has room for {MAX_LANGUAGES}")
        self.total_bytes = sum(source.size for source in self.sources)
        self._finished_bytes = 0
        self._file: BinaryIO | None = None
        self._tfds_share = 0.0

    @property
    def position(self) -> int:
        """Bytes on disk read so far by the newest iteration: compressed bytes where files are compressed."""
        inside = self._file.tell() if self._file is not None and not self._file.closed else int(self._tfds_share)
        return self._finished_bytes + inside

    def __iter__(self) -> Iterator[str]:
        return (group.texts[0] for group in self.groups())

    def groups(self) -> Iterator[Group]:
        """Every document as a group of one."""
        self._finished_bytes = 0
        for source in self.sources:
            number = self.languages.index(source.language) if source.language else 0
            with _readable(source):
                documents = self._tfds_documents(source) if source.kind == "tfds" else self._file_documents(source)
                for document in documents:
                    yield Group((document,), number)
            self._finished(source)

    def lines(self) -> Iterator[str]:
        """The lines of all sources, which must be files of text, without their ends."""
        self._finished_bytes = 0
        for source in self.sources:
            with _readable(source), self._opened(source) as stream:
                yield from _lines(source.path, stream)
            self._finished(source)

    def _finished(self, source: Source) -> None:
        self._finished_bytes += source.size
        self._file = None
        self._tfds_share = 0.0

    @contextlib.contextmanager
    def _opened(self, source: Source) -> Iterator[BinaryIO]:
        with self._open_file(source.path) as raw:
            self._file = raw
            yield gzip.GzipFile(fileobj=raw) if source.path.lower().endswith(".gz") else raw

    def _file_documents(self, source: Source) -> Iterator[str]:
        with self._opened(source) as stream:
            if source.kind == "json":
                yield from self._json_documents(source, stream)
            else:
                yield from _text_documents(source, stream, self.documents, self.field)

    def _json_documents(self, source: Source, stream: BinaryIO) -> Iterator[str]:
        number = 0
        while line := stream.readline(MAX_JSON_LINE):
            number += 1
            where = f"{source.path}, line {number}"
            if len(line) >= MAX_JSON_LINE:
                raise BertJaxError(f"{where}: longer than {MAX_JSON_LINE >> 20} MB: is this one JSON object a line?")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # of JSON, of UTF-8, and of a number with more digits than Python reads
                raise BertJaxError(f"{where}: not JSON ({error}): one JSON object a line is expected") from error
            except RecursionError as error:
                raise BertJaxError(f"{where}: JSON nested too deeply: one flat object a line is expected") from error
            yield from _cut(self._text_of(record, where), where)

    def _tfds_documents(self, source: Source) -> Iterator[str]:
        data, _ = open_tfds(source.path)
        step = max(1, len(data) // 1000)
        for index, record in enumerate(data):
            if index % step == 0:
                self._tfds_share = source.size * index / len(data)
            where = f"{source.name}, record {index}"
            yield from _cut(self._text_of(record, where), where)

    def _text_of(self, record: object, where: str) -> str:
        if not isinstance(record, dict):
            raise BertJaxError(f"{where}: a {type(record).__name__} where an object with a field is expected")
        if self.field not in record:
            names = ", ".join(sorted(map(str, record))) or "no fields"
            raise BertJaxError(f"{where}: no field {self.field!r}: choose one of {names}")
        text = record[self.field]
        try:
            if isinstance(text, bytes):
                text = text.decode()
            elif isinstance(text, str):
                text.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
        except UnicodeError as error:
            raise BertJaxError(f"{where}: field {self.field!r} is not Unicode text ({error})") from error
        if not isinstance(text, str):
            raise BertJaxError(f"{where}: field {self.field!r} is a {type(text).__name__}, not text")
        return text.replace("\r\n", "\n")  # as lines of files lose it


def _expand(spec: "str | os.PathLike | Source") -> list[Source]:
    """The sources that one argument names, sorted."""
    if isinstance(spec, Source):
        return [spec]
    language, spec = named(os.fspath(spec))
    if spec.startswith("tfds:"):
        name = spec.removeprefix("tfds:")
        _, size = open_tfds(name)
        return [Source(name=spec, path=name, size=size, kind="tfds", language=language)]
    check_local(spec)
    if glob.has_magic(spec) and not os.path.exists(spec):
        paths = sorted(path for path in glob.glob(spec, recursive=True) if os.path.isfile(path))
        if not paths:
            raise BertJaxError(f"{spec}: no file matches")
    else:
        paths = [spec]
        if not os.path.exists(spec):
            raise BertJaxError(f"{spec}: no such file")
        if os.path.isdir(spec):
            raise BertJaxError(f"{spec}: a folder: name the files in it, as in {os.path.join(spec, '*.txt')}")
    sources = []
    for path in paths:
        sources.append(file_source(path, os.path.getsize(path), language))
    return sources


def named(spec: str) -> tuple[str | None, str]:
    """Language and source of ``de=PATH``; None and the whole where no language is given, or files have that very name."""
    found = LANGUAGE.fullmatch(spec)
    there = found and (os.path.exists(spec) or any(glob.iglob(spec, recursive=True)))
    return (found[1], found[2]) if found and not there else (None, spec)


@contextlib.contextmanager
def _readable(source: Source) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BertJaxError(f"{source.path}: a damaged gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise BertJaxError(f"{source.path}: cannot be read ({error.strerror or error})") from error


def file_source(path: str, size: int, language: str | None = None) -> Source:
    """A file of text or JSON, as its name says."""
    kind = "json" if path.lower().removesuffix(".gz").endswith((".jsonl", ".json", ".ndjson")) else "text"
    return Source(pathlib.PurePath(path).name, path, size, kind, language)


def _text_documents(source: Source, stream: BinaryIO, documents: str, field: str) -> Iterator[str]:
    """The documents of one text file: lines are gathered until one that begins the next document."""
    path = source.path
    prefix = documents.removeprefix("prefix:") if documents.startswith("prefix:") else None
    blocks: list[str] = []  # of many lines each: a short line costs as much again as an object of its own
    lines: list[str] = []
    size = 0  # characters in both, newlines included

    def finished() -> Iterator[str]:
        nonlocal size
        text = "\n".join(blocks + lines)
        blocks.clear()
        lines.clear()
        size = 0
        if text and not text.isspace():
            yield text

    begun = False
    for line in _lines(path, stream):
        if not begun and line.strip():
            begun = True
            _check_no_json(path, line, field)
        if documents == "blank" and not line.strip():
            yield from finished()
            continue
        if prefix is not None and line.startswith(prefix):
            yield from finished()
            continue
        if documents == "formfeed" and "\f" in line:
            *before, line = line.split("\f")
            for part in before:
                lines.append(part)
                yield from finished()
        if size and size + len(line) > MAX_DOCUMENT:
            limit = MAX_DOCUMENT >> 20
            logger.warning("%s: a document of more than %d MB is cut: is documents=%s right?", path, limit, documents)
            yield from finished()
        lines.append(line)
        size += len(line) + 1
        if len(lines) == LINES_IN_BLOCK:
            blocks.append("\n".join(lines))
            lines.clear()
        if documents == "line":
            yield from finished()
    yield from finished()


def _check_no_json(path: str, line: str, field: str) -> None:
    """Raises BertJaxError where the first line of a file of text is a JSON object with the ``field`` of a text."""
    if line.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            if field in json.loads(line):
                raise BertJaxError(f"{path}: JSON lines, by its first one: give it a name that ends in .jsonl (or .jsonl.gz)")


_COMPRESSED = {  # besides gzip, by how files begin
    "bzip2": tuple(b"BZh%d1AY" % level for level in range(1, 10)), "zstd": b"\x28\xb5\x2f\xfd", "xz": b"\xfd7zXZ",
    "zip": b"PK\x03\x04",
}
_FOREIGN = (  # how files begin that are not read as text, and what to do with them
    (b"\x1f\x8b", "compressed by gzip: give it a name that ends in .gz"),
    *((start, f"compressed by {name}: decompress it, or compress it by gzip") for name, start in _COMPRESSED.items()),
    ((b"\xff\xfe", b"\xfe\xff"), "UTF-16, by its first bytes: convert it to UTF-8"),
)


def _lines(path: str, stream: BinaryIO) -> Iterator[str]:
    """Lines without their ends; decoded a block at a time, which takes two thirds of the time of a line at a time."""
    offset = 0  # in the decompressed bytes, of the start of `rest`
    rest = b""
    while block := stream.read(BLOCK):
        if offset == 0 and not rest and block.startswith(b"\xef\xbb\xbf"):
            block = block[3:]
            offset = 3
        if offset == 0 and not rest and (found := next((what for start, what in _FOREIGN if block.startswith(start)), None)):
            raise BertJaxError(f"{path}: {found}")
        rest += block
        end = rest.rfind(b"\n") + 1
        if not end:
            if len(rest) < MAX_DOCUMENT:
                continue
            # One line that is as long as the longest document: given as it stands, up to a whole character.
            end = len(rest)
            while rest[end - 1] & 0xC0 == 0x80 and len(rest) - end < 4:
                end -= 1
            end -= rest[end - 1] >= 0xC0
            logger.warning("%s: a line longer than %d MB is cut at byte %d", path, MAX_DOCUMENT >> 20, offset + end)
            yield _decode(path, rest[:end], offset)
        else:
            for line in _decode(path, rest[: end - 1], offset).split("\n"):
                yield line.removesuffix("\r")
        offset += end
        rest = rest[end:]
    if rest:
        yield _decode(path, rest, offset).removesuffix("\r")


def _decode(path: str, data: bytes, offset: int) -> str:
    zero = data.find(b"\0")
    if zero >= 0:
        raise BertJaxError(f"{path}: binary, not text: a zero byte at byte {offset + zero}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at, byte = offset + error.start, data[error.start]
        raise BertJaxError(f"{path}: not UTF-8 at byte {at} (0x{byte:02x}): convert it to UTF-8") from error


def _cut(text: str, where: str) -> Iterator[str]:
    if len(text) > MAX_DOCUMENT:
        logger.warning("%s: a document of %d million characters is cut", where, len(text) // 10**6)
    for start in range(0, max(1, len(text)), MAX_DOCUMENT):
        yield text[start : start + MAX_DOCUMENT]


def open_tfds(spec: str):
    """The random-access records of ``NAME[:SPLIT]`` and their size in bytes.

    The folder is ``TFDS_DATA_DIR``, or TFDS's default.
    """
    name, split = re.fullmatch(r"([^:]*(?::[\d*]+\.[\d*]+\.[\d*]+)?):?(.*)", spec).groups()
    split = split or "train"
    import tensorflow_datasets as tfds  # here: it takes a second, and most corpora are files

    try:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except (ValueError, OSError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BertJaxError(f"tfds:{spec}: not a TFDS data set on disk ({reason}): set TFDS_DATA_DIR?") from error
    if not builder.is_prepared():
        raise BertJaxError(
            f"tfds:{spec}: not on disk at {builder.data_dir}: run `tfds build {name} --file_format=array_record`"
        )
    if builder.info.file_format.value != "array_record":
        raise BertJaxError(
            f"tfds:{spec}: on disk as {builder.info.file_format.value}, which only TensorFlow reads: "
            f"run `tfds convert_format --dataset_dir {builder.data_dir} --out_file_format array_record`"
        )
    known = sorted(builder.info.splits)
    if split.partition("[")[0] not in known:
        raise BertJaxError(f"tfds:{spec}: no split {split!r}: choose one of {', '.join(known)}")
    try:
        return builder.as_data_source(split), int(builder.info.splits[split].num_bytes)
    except ValueError as error:  # what stands in brackets behind the split
        raise BertJaxError(f"tfds:{spec}: {' '.join(str(error).split())}") from error
