"""Text to token store on Apache Beam: what `prepare` does, on as many machines as there are, with the same bytes as result.

::

    sources -> documents -> blocks of tokens -> plan -> files of the store -> record

A source is read by one worker, as documents follow each other in it; its documents go on in blocks of `BLOCK` characters,
which are tokenised where they are read, or spread over all workers where the source is a large one. Each block of
tokens becomes one temporary file. Only its counts go to the plan, which says for every file of the store which ranges of
which blocks it consists of; the files are then written in parallel. One worker writes all offsets of one kind and split
(8 bytes a sentence or document), since they are one file. Everything else is work that more machines make shorter.
Nothing depends on who did what: blocks are ordered by source and place in it, and shards end where the local writer would
end them. Temporary files have random names, so that a repeated attempt never meets what an earlier one left.

The package must be installed on the workers: see docs/preparing.md.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from bert_jax.data.blocks import Block, BlockWriter, StoreFile, plan
from bert_jax.data.prepare import one_line
from bert_jax.data.sources import Corpus, Group, Source, file_source, named
from bert_jax.data.stages import Assembly, Recipe, Work, check_sides, parts, tasks, warn_of_doubts
from bert_jax.data.store import MANIFEST, PARTIAL, Manifest, SplitInfo, digests
from bert_jax.data.writer import check_not_empty, manifest_of
from bert_jax.errors import BertJaxError
from bert_jax.files import locked, put_in_place
from bert_jax.progress import Progress

try:
    import apache_beam as beam
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.metrics import Metrics
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.runner import PipelineState
except ModuleNotFoundError as missing:
    raise BertJaxError(f"Apache Beam is needed ({missing.name} is not installed): pip install 'bert_jax[beam]'") from missing

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

BLOCK = 16 << 20  # characters: what a worker holds as text and tokens at once, and what one temporary file comes from
SPREAD = 512 << 20  # bytes on disk from which a source's text is sent to all workers: minutes of tokenising on one core
WORK = "beam"  # the folder of temporary files in OUT.partial
OUTCOME = "outcome.json"
SOURCES = "sources.json"
REFUSED = "refused"
SPLITS = "splits"


def prepare_with_beam(
    sources: Sequence[str | os.PathLike],
    out_dir: str | os.PathLike,
    tokenizer: "Tokenizer",
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    beam_options: Sequence[str] = (),
    progress: bool = True,
) -> Manifest:
    """Writes the token store of `sources` to `out_dir`, byte for byte what `prepare` writes, and returns its manifest.

    Args:
      sources: as for `bert_jax.data.sources.Corpus`; every worker must be able to read them. Files and globs may also be of
        any file system that Beam knows, as in ``gs://bucket/*.jsonl.gz``.
      out_dir: a folder that does not exist yet and that every worker can write to, or one in a bucket, ``gs://bucket/store``.
        There the files appear one by one and the manifest last, without which no reader takes the folder for a store.
      tokenizer, recipe: what to make, and with what; the tokenizer is saved inside the store.
      beam_options: Beam's own, as on a command line: ``["--runner=DataflowRunner", "--project=p"]``. Without a runner, the
        workers are of this process: threads or processes by ``--direct_running_mode`` and ``--direct_num_workers``.
      progress: show on stderr, if that is a terminal, how far it is.

    Raises:
      BertJaxError: what `prepare` refuses, in the same words; a pipeline that failed, with the runner's last line.
        Nothing is left then, and another call begins anew. Parallel text, as here every source is read by itself.
    """
    if recipe.parallel:
        raise BertJaxError("parallel text is prepared by the local runner: leave out --runner beam")
    options = PipelineOptions(list(beam_options))
    FileSystems.set_options(options)  # credentials and the like, before a pipeline exists
    paths = [named(os.fspath(source))[1] for source in sources]
    for path in (*paths, os.fspath(out_dir)):
        _check_file_system(path)
    out = os.fspath(out_dir).rstrip("/") if _is_url(os.fspath(out_dir)) else os.path.abspath(out_dir)
    here = [path for path in (*paths, out) if not _is_url(path)]
    if here and "dataflow" in (options.view_as(StandardOptions).runner or "").lower():
        raise BertJaxError(f"{here[0]}: Dataflow's workers do not see this machine's files: use gs:// for text and store")
    open_file = functools.partial(_open, os.getcwd())
    with one_line(out), _place(out) as (build, work):
        found = [source for spec in sources for source in _found(spec)]
        corpus = Corpus(found, documents=recipe.documents, field=recipe.field, open_file=open_file)
        check_sides(corpus, recipe.heldout)
        inputs = recipe.inputs(corpus, tokenizer)
        files = _put_tokenizer(tokenizer, build)
        listing = [dataclasses.asdict(source) for source in corpus.sources]
        _put(f"{work}/{SOURCES}", [json.dumps(listing).encode()])
        tfds_dir = os.environ.get("TFDS_DATA_DIR")
        job = _Job(recipe, build, work, tuple(files), tokenizer.hash, os.getcwd(), tfds_dir, BLOCK, corpus.languages)
        outcome = _run(job, {source.size >= SPREAD for source in corpus.sources}, options, progress)
        splits = {name: SplitInfo(**info) for name, info in outcome["splits"].items()}
        check_not_empty(splits, outcome["documents"], outcome["without_tokens"])
        for side in splits:
            if not FileSystems.exists(f"{build}/{side}"):  # in a bucket never, and then this does nothing
                FileSystems.mkdirs(f"{build}/{side}")
        FileSystems.rename([path for _, path, _, _ in outcome["files"]], [f"{build}/{row[0]}" for row in outcome["files"]])
        files |= {name: (size, digest) for name, _, size, digest in outcome["files"]}
        text = manifest_of(inputs, tokenizer, splits, outcome["without_tokens"], files).to_json()
        _put(f"{build}/{MANIFEST}", [text.encode()])
    if not _is_url(out):  # a bucket is not read again for it
        warn_of_doubts(out)
    if outcome["without_tokens"]:
        logger.warning("%s: %d documents without any token were dropped", out, outcome["without_tokens"])
    return Manifest.from_json(text)


# Places


def _is_url(path: str) -> bool:
    return "://" in path


def _check_file_system(path: str) -> None:
    try:
        FileSystems.get_filesystem(path)
    except ValueError as error:
        raise BertJaxError(
            f"{path}: Beam cannot reach it: pip install 'apache-beam[gcp]' for gs://, [aws] for s3://, [azure] for azfs://"
        ) from error


def _open(folder: str, path: str) -> BinaryIO:
    """A file anywhere, as the bytes it has; `folder` is where the caller stood when it said a relative path."""
    where = path if _is_url(path) else os.path.join(folder, path)
    return FileSystems.open(where, compression_type=CompressionTypes.UNCOMPRESSED)


def _put(path: str, chunks: Iterable[bytes]) -> None:
    with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        for chunk in chunks:
            file.write(chunk)


def _found(spec: str | os.PathLike) -> list[str | os.PathLike | Source]:
    """`spec` as `Corpus` takes it: what Beam's file systems find is listed here."""
    language, spec = named(os.fspath(spec))
    if not _is_url(spec):
        return [f"{language}={spec}" if language else spec]
    files = FileSystems.match([spec])[0].metadata_list
    if not files:
        raise BertJaxError(f"{spec}: no such file")
    return [file_source(file.path, file.size_in_bytes, language) for file in sorted(files, key=lambda file: file.path)]


@contextlib.contextmanager
def _place(out: str) -> Iterator[tuple[str, str]]:
    """Where the files of the store are put together, and where temporary ones go; afterwards all is at `out`, or nothing. (A
    store that is whole and cannot be moved to its place stays where it is, and the message says so.)"""
    way_out = "remove it or choose another folder"
    if _is_url(out):
        build, work = out, out + PARTIAL
        if any(FileSystems.match([f"{out}/**"], [1])[0].metadata_list):
            raise BertJaxError(f"{out}: exists already: {way_out}")
        if any(FileSystems.match([f"{work}/**"], [1])[0].metadata_list):
            raise BertJaxError(f"{work}: another run is writing it, or was killed: wait for it, or remove it")
        try:
            yield build, work
        except BaseException:
            _delete(build)
            _delete(work)
            raise
        _delete(work)
        return
    if os.path.exists(out):
        raise BertJaxError(f"{out}: exists already: {way_out}")
    partial = pathlib.Path(out + PARTIAL)
    with locked(partial):
        found = {entry.name for entry in partial.iterdir()}
        if found and WORK not in found:
            raise BertJaxError(f"{partial}: holds something other than an unfinished store of this runner: remove it")
        if found:
            logger.warning("%s: left by a run that was killed: begun anew", partial)
            for entry in partial.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (partial / WORK).mkdir()
        try:
            yield str(partial), str(partial / WORK)
            shutil.rmtree(partial / WORK)
            os.sync()  # workers' files are closed, not yet on this machine's disk
        except BaseException:
            shutil.rmtree(partial)
            raise
        put_in_place(partial, pathlib.Path(out), MANIFEST)  # what cannot be moved stays, whole


def _delete(url: str) -> None:
    if FileSystems.match([f"{url}/**"], [1])[0].metadata_list:
        FileSystems.delete([f"{url}/**"])


def _put_tokenizer(tokenizer: "Tokenizer", build: str) -> dict[str, tuple[int, str]]:
    """Saves it inside the store; returns size and digest of its files by name."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        tokenizer.save(root / "tokenizer")
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        found = digests(root, names, "hashing")
        for name in names:
            _put(f"{build}/{name}", [(root / name).read_bytes()])
        return {name: ((root / name).stat().st_size, found[name]) for name in names}


# What workers do


@dataclasses.dataclass(frozen=True)
class _Job:
    """What every worker must know. The tokenizer itself may be larger than a job description that runners pass around."""

    recipe: Recipe
    build: str
    work: str
    tokenizer_files: tuple[str, ...]
    tokenizer_hash: str
    folder: str  # where relative paths of sources begin
    tfds_dir: str | None
    block: int
    languages: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def _tokenising(job: _Job) -> Work:
    """One in every worker process, whatever its threads."""
    from bert_jax import tokenizers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the runner has a process or thread for every core
    with tempfile.TemporaryDirectory() as folder:
        for name in job.tokenizer_files:
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _open("", f"{job.build}/{name}") as file:
                path.write_bytes(file.read())
        tokenizer = tokenizers.load(pathlib.Path(folder, "tokenizer"))
    if tokenizer.hash != job.tokenizer_hash:
        raise BertJaxError(f"the tokenizer was saved as {job.tokenizer_hash} and read as {tokenizer.hash}")
    return Work(tokenizer, job.recipe)


def _read(path: str, begin: int, size: int) -> bytes:
    with _open("", path) as file:
        file.seek(begin)
        data = file.read(size)
    if len(data) != size:
        raise OSError(f"{path}: {len(data)} bytes from {begin} where {size} were written")
    return data


class _ListSources(beam.DoFn):
    """From the list that the launcher wrote: a job description has no room for a hundred thousand names."""

    def process(self, path: str):
        with _open("", path) as file:
            yield from enumerate(Source(**fields) for fields in json.loads(file.read()))


class _Documents(beam.DoFn):
    """A numbered source to its documents, in blocks of about `job.block` characters, each with its order."""

    def __init__(self, job: _Job):
        self.job = job

    def setup(self):
        if self.job.tfds_dir:
            os.environ.setdefault("TFDS_DATA_DIR", self.job.tfds_dir)

    def process(self, element):
        number, source = element
        recipe, open_file = self.job.recipe, functools.partial(_open, self.job.folder)
        corpus = Corpus([source], documents=recipe.documents, field=recipe.field, open_file=open_file)
        language = self.job.languages.index(source.language) if source.language else 0
        place, groups, size = 0, [], 0
        try:
            for document in corpus:
                groups.append(Group((document,), language))
                size += len(document)
                if size >= self.job.block:
                    yield (number, place), groups
                    place, groups, size = place + 1, [], 0
            if groups:
                yield (number, place), groups
        except BertJaxError as error:
            yield TaggedOutput(REFUSED, (number, str(error)))


class _Tokens(beam.DoFn):
    """A block of documents to the `Block` of its tokens, which it writes."""

    def __init__(self, job: _Job):
        self.job = job
        names = ("documents", "text_bytes", "tokens")
        self.documents, self.bytes, self.tokens = (Metrics.counter("bert_jax", name) for name in names)

    def setup(self):
        self.work = _tokenising(self.job)

    def process(self, element):
        order, groups = element
        recipe = self.job.recipe
        writer = BlockWriter(recipe.sides, self.work.stored.dtype, recipe.channels, languages=bool(self.job.languages))
        assembly = Assembly(writer)
        try:
            for task in tasks(parts(groups, recipe.heldout)):
                assembly.write(task, self.work([part.texts for part in task]))
        except BertJaxError as error:
            yield TaggedOutput(REFUSED, (order[0], str(error)))
            return
        block, chunks = writer.finish(f"{self.job.work}/{uuid.uuid4().hex}", order)
        _put(block.path, chunks)
        self.documents.inc(writer.read)
        self.bytes.inc(writer.text_bytes)
        self.tokens.inc(sum(side.tokens for side in block.sides.values()))
        yield block


class _Plan(beam.DoFn):
    """All blocks to the files of the store; none where a source was refused."""

    def __init__(self, job: _Job):
        self.recipe, self.languages = job.recipe, bool(job.languages)

    def process(self, _, blocks: list[Block], refused: list[tuple[int, str]]):
        recipe, splits, files = self.recipe, {}, []
        if not refused:
            splits, files = plan(blocks, recipe.sides, recipe.shard_tokens, _read, languages=self.languages)
        yield from files
        yield TaggedOutput(SPLITS, {
            "refused": sorted(refused),
            "documents": sum(block.read for block in blocks),
            "without_tokens": sum(block.without_tokens for block in blocks),
            "splits": {side: dataclasses.asdict(split) for side, split in splits.items()},
        })


class _Files(beam.DoFn):
    """A file of the store to its name, where it is for the time being, its size and its digest."""

    def __init__(self, work: str):
        self.work = work
        self.written = Metrics.counter("bert_jax", "files")

    def process(self, file: StoreFile):
        digest, size = hashlib.blake2b(digest_size=16), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for chunk in file.chunks(_read):
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        path = f"{self.work}/{uuid.uuid4().hex}"
        _put(path, counted())
        self.written.inc()
        yield file.name, path, size, digest.hexdigest()


class _Record(beam.DoFn):
    """What the launcher needs to know, which a pipeline can only tell it through a file."""

    def __init__(self, work: str):
        self.work = work

    def process(self, _, outcome: dict, files: list[tuple[str, str, int, str]]):
        _put(f"{self.work}/{OUTCOME}", [json.dumps(outcome | {"files": files}).encode()])


def _build(pipeline: beam.Pipeline, job: _Job, sizes: set[bool]) -> None:
    """The whole of it; `sizes` says which kinds of sources there are, large (True) and others."""
    sources = pipeline | "list" >> beam.Create([f"{job.work}/{SOURCES}"]) | beam.ParDo(_ListSources())
    blocks, refused = [], []
    for large in sorted(sizes):
        kind = "large" if large else "small"
        texts = (
            sources
            | f"{kind} ones" >> beam.Filter(lambda numbered, large=large: (numbered[1].size >= SPREAD) == large)
            | f"share {kind}" >> beam.Reshuffle()
            | f"read {kind}" >> beam.ParDo(_Documents(job)).with_outputs(REFUSED, main="texts")
        )
        spread = texts.texts | "spread" >> beam.Reshuffle() if large else texts.texts
        made = spread | f"tokenise {kind}" >> beam.ParDo(_Tokens(job)).with_outputs(REFUSED, main="blocks")
        blocks.append(made.blocks)
        refused += [texts[REFUSED], made[REFUSED]]
    blocks = blocks | "all blocks" >> beam.Flatten()
    refused = refused | "all refused" >> beam.Flatten()
    planned = (
        pipeline
        | "once" >> beam.Create([None])
        | "plan" >> beam.ParDo(_Plan(job), AsList(blocks), AsList(refused)).with_outputs(SPLITS, main="files")
    )
    written = planned.files | "share files" >> beam.Reshuffle() | "write" >> beam.ParDo(_Files(job.work))
    once = pipeline | "once more" >> beam.Create([None])
    _ = once | "record" >> beam.ParDo(_Record(job.work), AsSingleton(planned[SPLITS]), AsList(written))


# Running


def _run(job: _Job, large: set[bool], options: PipelineOptions, progress: bool) -> dict:
    """Runs the pipeline and returns its record."""
    own = None if options.view_as(StandardOptions).runner else FnApiRunner()  # "DirectRunner" would fetch a program
    try:
        with Progress("Beam job running", show=progress):  # what share is done only the runner knows
            pipeline = beam.Pipeline(runner=own, options=options)
            _build(pipeline, job, large)
            result = pipeline.run()
            result.wait_until_finish()
        if result.state != PipelineState.DONE:
            raise BertJaxError(f"Beam: the job ended as {result.state}: see the log of its runner")
    except (BertJaxError, OSError):
        raise
    except Exception as error:  # runners raise what they like; the last line is the cause
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise BertJaxError(f"Beam: the job failed: {lines[-1]}") from error
    with _open("", f"{job.work}/{OUTCOME}") as file:
        outcome = json.loads(file.read())
    if outcome["refused"]:
        (_, first), *others = outcome["refused"]
        raise BertJaxError(first + (f" (and {len(others)} other sources are refused)" if others else ""))
    return outcome
