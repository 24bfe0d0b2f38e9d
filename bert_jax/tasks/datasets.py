"""Published data sets by name, each a row of ``DATASETS``; :class:`Named` reads them.

Names, features, splits and the order of labels are those of tensorflow-datasets (TFDS), which two do not know: swag and
chnsenticorp, which are read from their files. Scores are what GLUE's leaderboard or the data set's authors report.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from bert_jax.data.sources import open_tfds
from bert_jax.errors import BertJaxError
from bert_jax.tasks.race import questions_of
from bert_jax.tasks.squad import rows_of
from bert_jax.tasks.tables import Rows, Table

logger = logging.getLogger("bert_jax")

Record = Mapping[str, Any]  # an example of TFDS: strings are bytes, class labels numbers
Kind = Literal["Classification", "Regression", "QuestionAnswering", "Tagging", "Choice"]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is known of a data set.

    Attributes:
      kind: the configuration in bert_jax.tasks that it is for. scores: those that are reported.
      splits: their names in TFDS. texts, label: features. labels: in TFDS's order; empty where it is not classes.
      builder: the name in TFDS; None: TFDS does not have it. parts: a language or treebank belongs to the name; it stands for
        the ``{}`` of ``builder``, or else is one of several side by side in each example.
      files: for each split the files that it may be in, beneath the folder that the original archive makes; the first that is
        there is read. Where columns hold numbers of classes, these are in the order of ``labels``.
    """

    kind: Kind
    scores: tuple[str, ...]
    splits: tuple[str, ...]
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...] = ()
    builder: str | None = None
    parts: bool = False
    files: Mapping[str, tuple[Table, ...]] = dataclasses.field(default_factory=dict, hash=False)


def _glue(
    name: str, texts: tuple[str, ...], labels: tuple[str, ...], scores: tuple[str, ...] = ("accuracy",), *,
    kind: Kind = "Classification", splits: tuple[str, ...] = ("train", "validation", "test"),
    columns: tuple[str, ...] = (), label: str = "label", files: Mapping[str, tuple[Table, ...]] | None = None,
) -> Dataset:
    """A task of GLUE (Wang et al. 2019). ``columns`` and ``label`` are those of its files ``train.tsv``, ``dev.tsv`` and
    ``test.tsv``, the last without labels, unless ``files`` says otherwise."""
    columns = columns or texts
    stems = {split: split.replace("validation", "dev") for split in splits}
    usual = {
        split: (Table(f"{stem}.tsv", columns, None if split == "test" else label),) for split, stem in stems.items()
    }
    return Dataset(kind, scores, splits, texts, "label", labels, f"glue/{name}", files=usual if files is None else files)


_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_ENTAILED = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
_ENTITIES = tuple(f"{place}-{kind}" for kind in ("PER", "ORG", "LOC") for place in "BI")
_UPOS = tuple("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X _".split())


def _mnli(name: str, splits: tuple[str, ...], files: tuple[str, ...]) -> Dataset:
    tables = {
        split: (Table(file, _PAIR, None if file.startswith("test") else "gold_label"),)
        for split, file in zip(splits, files, strict=True)
    }
    return _glue(name, _NLI, _THREE, splits=splits, files=tables)


def _cola(*files: str) -> tuple[Table, ...]:
    return tuple(Table(file, ("3",), "1") for file in files)


def _mrpc(*files: str) -> tuple[Table, ...]:
    return tuple(Table(file, ("#1 String", "#2 String"), "Quality") for file in files)


def _chnsenticorp() -> dict[str, tuple[Table, ...]]:
    files = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
    return {split: (Table(file, ("text_a",), "label"),) for split, file in files.items()}


def _squad(name: str) -> Dataset:
    return Dataset("QuestionAnswering", ("f1", "exact_match"), ("train", "validation"), ("question", "context"), "answers",
                   builder=name)


def _race(name: str) -> Dataset:
    return Dataset("Choice", ("accuracy",), ("train", "dev", "test"), ("article", "questions", "options"), "answers",
                   builder=name)


DATASETS: dict[str, Dataset] = {
    "glue/cola": _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), files={
        "train": _cola("train.tsv", "raw/in_domain_train.tsv"), "validation": _cola("dev.tsv", "raw/in_domain_dev.tsv"),
        "test": (Table("test.tsv", ("sentence",)),),
    }),
    "glue/sst2": _glue("sst2", ("sentence",), ("negative", "positive")),
    "glue/mrpc": _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy"), files={
        "train": _mrpc("train.tsv", "msr-para-train.tsv"), "validation": _mrpc("dev.tsv", "msr-para-val.tsv"),
        "test": _mrpc("msr-para-test.tsv", "msr_paraphrase_test.txt.tsv"),
    }),
    "glue/qqp": _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy"),
                      label="is_duplicate"),
    "glue/stsb": _glue("stsb", _PAIR, (), ("pearson", "spearman"), kind="Regression", label="score"),
    "glue/mnli": _mnli(
        "mnli", ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
        ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv", "test_matched.tsv", "test_mismatched.tsv"),
    ),
    "glue/mnli_matched": _mnli("mnli_matched", ("validation", "test"), ("dev_matched.tsv", "test_matched.tsv")),
    "glue/mnli_mismatched": _mnli("mnli_mismatched", ("validation", "test"), ("dev_mismatched.tsv", "test_mismatched.tsv")),
    "glue/qnli": _glue("qnli", ("question", "sentence"), _ENTAILED),
    "glue/rte": _glue("rte", _PAIR, _ENTAILED),
    "glue/wnli": _glue("wnli", _PAIR, ("not_entailment", "entailment")),
    "glue/ax": _glue("ax", _NLI, _THREE, ("matthews",), splits=("test",), files={"test": (Table("diagnostic.tsv", _PAIR),)}),
    "xnli": Dataset("Classification", ("accuracy",), ("validation", "test"), _NLI, "label", _THREE, "xnli", True),
    "paws_x_wiki": Dataset(
        "Classification", ("accuracy",), ("train", "validation", "test"), _PAIR, "label", ("different_meaning", "paraphrase"),
        "paws_x_wiki/{}", True, files={
            "train": (Table("translated_train.tsv", _PAIR, "label"), Table("train.tsv", _PAIR, "label")),  # the latter in en
            "validation": (Table("dev_2k.tsv", _PAIR, "label"),), "test": (Table("test_2k.tsv", _PAIR, "label"),),
        },
    ),
    "chnsenticorp": Dataset("Classification", ("accuracy",), ("train", "validation", "test"), ("text_a",), "label", ("0", "1"),
                            files=_chnsenticorp()),
    "squad/v1.1": _squad("squad/v1.1"),
    "squad/v2.0": _squad("squad/v2.0"),
    "conll2003": Dataset("Tagging", ("f1",), ("train", "dev", "test"), ("tokens",), "ner",
                         ("O", *_ENTITIES, "B-MISC", "I-MISC"), "conll2003"),
    "wikiann": Dataset("Tagging", ("f1",), ("train", "validation", "test"), ("tokens",), "tags", ("O", *_ENTITIES),
                       "wikiann/{}", True),
    "universal_dependencies": Dataset("Tagging", ("accuracy",), ("train", "dev", "test"), ("tokens",), "upos", _UPOS,
                                      "universal_dependencies/{}", True),
    "race/high": _race("race/high"),
    "race/middle": _race("race/middle"),
}

# Files of the authors that GLUE cut otherwise, by name.
OTHER_ROWS = {
    "raw/in_domain_dev.tsv": "half of the development set (527 of 1,043 rows)",
    "msr-para-train.tsv": "3,576 of the 4,076 rows to train on", "msr-para-val.tsv": "500 rows of the authors' training set",
}

# How files of these kinds are read without TFDS, for messages; SWAG is not in TFDS at all.
READERS = {
    "QuestionAnswering": "tasks.squad.Squad", "Tagging": "tasks.columns.Columns", "Choice": "tasks.race.Race",
    "swag": "tasks.choice.swag",
}


def find(name: str) -> tuple[Dataset, str]:
    """The data set of a name and what it says beyond: the language or treebank of ``wikiann/de``, ``xnli/zh`` or
    ``universal_dependencies/en_ewt``, else nothing.

    Raises:
      BertJaxError: no such data set (those that there are, are listed), or one of which a language must be named.
    """
    if name == "swag":
        raise BertJaxError(f"swag is not in TFDS: read its files train.csv and val.csv with {READERS['swag']}(path)")
    family, _, part = name.partition("/")
    key, part = (name, "") if name in DATASETS else (family, part)
    if key not in DATASETS or (part and not DATASETS[key].parts):
        raise BertJaxError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}, and tables of one's own")
    if not part and DATASETS[key].parts:
        raise BertJaxError(f"{name}: say which part, as in {key}/{'en_ewt' if key.startswith('univ') else 'de'}")
    return DATASETS[key], part


@dataclasses.dataclass(frozen=True)
class Named:
    """A split of a published data set.

    Attributes:
      name: a key of ``DATASETS``, with the language or treebank behind where there are several: ``glue/mrpc``, ``xnli/de``.
      split: by TFDS's name; also a part of it in TFDS's notation, such as ``train[:90%]``, where it is read from TFDS.
      folder: where the original files lie; None: TFDS has it on disk in array_record format, in its usual folder or the one
        that TFDS_DATA_DIR names. It is read without TensorFlow.
    """

    name: str
    split: str = "train"
    folder: str | None = None

    def __post_init__(self):
        dataset, _ = find(self.name)
        if self.split.partition("[")[0] not in dataset.splits:
            raise BertJaxError(f"{self.name}: no split {self.split!r}; there are {', '.join(dataset.splits)}")
        if self.folder is None and dataset.builder is None:
            raise BertJaxError(f"{self.name} is not in TFDS: name the folder of its files")
        if self.folder is not None and self.split not in dataset.files:
            reader = f": read its files with {READERS[dataset.kind]}" if dataset.kind in READERS else ", only from TFDS"
            raise BertJaxError(f"{self.name}, split {self.split!r}, is not read from a folder{reader}")

    @property
    def dataset(self) -> Dataset:
        """The row of the table."""
        return find(self.name)[0]

    @property
    def path(self) -> str:
        """The file of the split; with TFDS the one that describes all of them, their sizes and checksums."""
        if self.folder is not None:
            return self._table().path
        return str(Path(open_tfds(self._spec())[0].dataset_info.data_dir) / "dataset_info.json")

    def read(self) -> Rows:
        """All rows, in the order of the files. Labels of classes are TFDS's names; there are none where the split has none, as
        GLUE's test splits. What the kinds beyond sentences are given is what their own readers make of files.

        Raises:
          BertJaxError: not on disk, not in array_record format, other labels than the table's, a damaged record; of files see
            :meth:`bert_jax.tasks.tables.Table.read`. Damaged lines, which QQP has, are skipped with one warning line.
        """
        dataset, part = find(self.name)
        if self.folder is None:
            source = open_tfds(self._spec())[0]
            self._check_labels(source.dataset_info.features)
            return CONVERT[dataset.kind](dataset, part, source)
        table = self._table()
        rows = table.read(damaged="skip")
        if kind := next((what for name, what in OTHER_ROWS.items() if table.path.endswith(name)), None):
            logger.warning("%s has %s, not the rows of %s", table.path, kind, self.name)
        return _with_names(rows, self.name, table.path)

    def at(self, path: str) -> "Named | None":
        """The split that ``path`` is, by the name that it has among the data set's own files; None: none of them.

        Raises:
          BertJaxError: it has such a name and is not there.
        """
        for split, tables in self.dataset.files.items():
            for table in tables:
                parts = Path(table.path).parts
                if Path(path).parts[-len(parts) :] == parts:
                    found = Named(self.name, split, str(Path(path).parents[len(parts) - 1]))
                    if Path(found.path) == Path(path):  # the one that is read where there are several
                        return found
        return None

    def _spec(self) -> str:
        dataset, part = find(self.name)
        return f"{dataset.builder.format(part)}:{self.split}"

    def _table(self) -> Table:
        tables = self.dataset.files[self.split]
        for table in tables:
            if (path := Path(self.folder, table.path)).is_file():
                return dataclasses.replace(table, path=str(path))
        raise BertJaxError(f"{self.name}: {self.folder} has no {' or '.join(table.path for table in tables)}")

    def _check_labels(self, features: Mapping[str, Any]) -> None:
        dataset = self.dataset
        feature = features[dataset.label]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names and dataset.labels and tuple(names) != dataset.labels:
            wanted = ", ".join(dataset.labels)
            raise BertJaxError(f"{self.path}: the labels are {', '.join(names)}, not {wanted}: is this another version?")


@dataclasses.dataclass(frozen=True)
class InPlace:
    """A table of one's own in place of a split of the data set ``name``: it has its labels, by their names or their numbers."""

    table: Table
    name: str

    @property
    def path(self) -> str:
        return self.table.path

    def read(self) -> Rows:
        """All rows; of errors see :meth:`bert_jax.tasks.tables.Table.read`, and a label that the data set does not have."""
        return _with_names(self.table.read(), self.name, self.path)


def _with_names(rows: Rows, name: str, path: str) -> Rows:
    """Rows of a file with the names of their classes, which files may give by their numbers."""
    labels = find(name)[0].labels
    names = {str(number): label for number, label in enumerate(labels)} | {label: label for label in labels}
    if not labels:
        return rows
    if unknown := [label for label in rows.labels if label not in names]:
        raise BertJaxError(f"{path} has the label {unknown[0]!r}, those of {name} are {', '.join(labels)}")
    return Rows(rows.texts, [names[label] for label in rows.labels])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _sentences(dataset: Dataset, part: str, records: Iterable[Record]) -> Rows:
    """Rows without a text, of which QQP has some, are skipped with one warning line, as those of files are."""
    rows, skipped = Rows([], []), 0
    for record in records:
        texts = tuple(_in_language(record[name], part) for name in dataset.texts)
        if not all(text.strip() for text in texts):
            skipped += 1
            continue
        rows.texts.append(texts)
        value = record[dataset.label]
        rows.labels.append(-1 if value == -1 else dataset.labels[value] if dataset.labels else f"{value:g}")
    if skipped:
        logger.warning("%s: %d rows that lack a text were skipped", dataset.builder.format(part), skipped)
    if set(rows.labels) == {-1}:  # how TFDS writes that there are none
        rows.labels.clear()
    return rows


def _in_language(value: Any, language: str) -> str:
    """A text; of texts in several languages the one that is asked for."""
    if not isinstance(value, Mapping):
        return _text(value)
    if "translation" in value:
        value = dict(zip(map(_text, value["language"]), value["translation"], strict=True))
    if language not in value:
        raise BertJaxError(f"xnli: no language {language!r}; there are {', '.join(sorted(value))}")
    return _text(value[language])


def _questions(dataset: Dataset, part: str, records: Iterable[Record]) -> Rows:
    """Records of SQuAD in the form of its files."""
    name = dataset.builder.format(part)

    def questions() -> Iterator[tuple[str, dict[str, Any], str]]:
        for number, record in enumerate(records):
            question, context = (_text(record[name]) for name in dataset.texts)
            answers = zip(map(_text, record["answers"]["text"]), record["answers"]["answer_start"], strict=True)
            yield context, {
                "id": _text(record["id"]), "question": question, "is_impossible": bool(record.get("is_impossible")),
                "answers": [{"text": text, "answer_start": int(start)} for text, start in answers],
            }, f"{name}: record {number}"

    return rows_of(questions(), name, "it")


def _tagged(dataset: Dataset, part: str, records: Iterable[Record]) -> Rows:
    """Words with their tags. In Universal Dependencies ``_`` is the tag of what is written for several words (``im`` before
    ``in`` and ``dem``), which is none itself; empty nodes, which files number 8.1, cannot be told from words here."""
    rows = Rows([], [])
    for record in records:
        tags = (dataset.labels[tag] for tag in record[dataset.label])
        tagged = [(word, tag) for word, tag in zip(map(_text, record[dataset.texts[0]]), tags, strict=True) if tag != "_"]
        if tagged and [word for word, _ in tagged] != ["-DOCSTART-"]:
            words, labels = zip(*tagged, strict=True)
            rows.texts.append(words)
            rows.labels.append(labels)
    return rows


def _choices(dataset: Dataset, part: str, records: Iterable[Record]) -> Rows:
    """Passages of RACE."""
    rows = Rows([], [])
    for number, record in enumerate(records):
        passage = {
            "article": _text(record["article"]), "questions": list(map(_text, record["questions"])),
            "options": [list(map(_text, options)) for options in record["options"]],
            "answers": list(map(_text, record["answers"])),
        }
        for texts, label in questions_of(passage, f"{dataset.builder.format(part)}: record {number}"):
            rows.texts.append(texts)
            rows.labels.append(label)
    return rows


CONVERT: dict[Kind, Callable[[Dataset, str, Iterable[Record]], Rows]] = {
    "Classification": _sentences, "Regression": _sentences, "QuestionAnswering": _questions, "Tagging": _tagged,
    "Choice": _choices,
}
