"""Names from a list, found in a token store."""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bert_jax.data.phrases import extended, find
from bert_jax.errors import BertJaxError

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer


def read_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The names in files, without repetitions, in order.

    A file has one name a line; one whose name ends in ``.spo``, the tables of K-BERT, has subject, predicate and object
    separated by tabs, and its subjects and objects are names. Names without a letter or digit are left out.

    Raises BertJaxError for a file that cannot be read or is not such a list.
    """
    names: dict[str, None] = {}
    for path in map(pathlib.Path, paths):
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BertJaxError(f"{path}: not UTF-8 at byte {error.start}: convert it to UTF-8") from error
        except OSError as error:
            raise BertJaxError(f"{path}: cannot be read ({error.strerror or error})") from error
        before = len(names)
        for number, line in enumerate(text.splitlines(), 1):
            fields = [line]
            if path.suffix == ".spo" and line.strip():
                fields = line.split("\t")
                if len(fields) != 3:
                    wanted = "subject, predicate and object, separated by tabs, are expected"
                    raise BertJaxError(f"{path}, line {number}: {len(fields)} columns, where {wanted}")
                del fields[1]
            names |= {name: None for field in fields if any(map(str.isalnum, name := " ".join(field.split())))}
        if len(names) == before and not before:
            raise BertJaxError(f"{path}: no name in it: one a line is expected")
    return list(names)


class Gazetteer:
    """Names as pieces of a tokenizer, to be looked up in token streams.

    A name matches where its pieces stand one after the other within a sentence, the first begins a word and the last
    ends one. A name of which the tokenizer knows a part only as unknown matches nothing.

    Attributes:
      known: how many names the tokenizer can say.
    """

    def __init__(self, names: Sequence[str], tokenizer: "Tokenizer"):
        # Byte-level pieces differ at the start of a text and inside it.
        encoded = [tokenizer.encode_batch(list(names)), tokenizer.encode_batch([" " + name for name in names])]
        said = [
            {tuple(form.tolist()) for form in forms if len(form) and tokenizer.unk_id not in form}
            for forms in zip(*encoded, strict=True)
        ]
        self.known = sum(map(bool, said))
        by_length: dict[int, set[tuple[int, ...]]] = {}
        for form in (form for forms in said for form in forms):
            by_length.setdefault(len(form), set()).add(form)
        self.longest = max(by_length, default=0)
        prefixes: dict[int, list[np.ndarray]] = {n: [] for n in range(1, self.longest + 1)}
        self._names: dict[int, np.ndarray] = {}
        for length, forms in by_length.items():
            pieces = np.array(sorted(forms), np.uint64)
            total = np.zeros(len(pieces), np.uint64)
            for n in range(1, length + 1):
                total, hashes = extended(total, pieces[:, n - 1], n - 1)
                prefixes[n].append(hashes)
            self._names[length] = np.unique(hashes)
        self._prefixes = {n: np.unique(np.concatenate(parts)) for n, parts in prefixes.items()}

    def matches(self, ids: np.ndarray, begins: np.ndarray, sentence_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends, int64 [K], of all names in T tokens, overlapping ones too.

        Args:
          ids: int [T]. begins: int64 [W], where words begin, sentences too. sentence_starts: bool [T].
        """
        ids = ids.astype(np.uint64)
        boundary = np.zeros(len(ids) + 1, bool)
        boundary[begins] = boundary[-1] = True
        sentences = np.append(np.flatnonzero(sentence_starts), len(ids))
        at, end = begins, sentences[np.searchsorted(sentences, begins, side="right")]
        total = np.zeros(len(at), np.uint64)
        starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for n in range(1, self.longest + 1):
            fits = at + n <= end
            at, end, total = at[fits], end[fits], total[fits]
            total, hashes = extended(total, ids[at + n - 1], n - 1)
            goes_on = find(self._prefixes[n], hashes) >= 0
            if n in self._names:
                whole = (find(self._names[n], hashes) >= 0) & boundary[at + n]
                starts.append(at[whole])
                ends.append(at[whole] + n)
            at, end, total = at[goes_on], end[goes_on], total[goes_on]
        return np.concatenate(starts), np.concatenate(ends)
