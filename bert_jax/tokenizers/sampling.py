"""The lines that a vocabulary is learnt from: all of a corpus that fits in memory, else an even sample. And what lower-casing
would take from them."""

import logging
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from bert_jax.errors import BertJaxError
from bert_jax.progress import Progress

logger = logging.getLogger("bert_jax")

# What sentencepiece's trainer can take under 1 GB: 30,000 pieces peak at 0.74 GB on 29 M characters, 1.4 GB on 58 M.
MAX_CHARACTERS = 40_000_000
LOOKED_AT = 2_000  # lines, for marks that lower-casing takes away
STRIPPED = 0.01  # share of the characters above which that is said


def training_lines(texts: Iterable[str], max_characters: int = MAX_CHARACTERS) -> list[str]:
    """The non-empty lines of `texts`, in order, at most `max_characters` in all.

    Every line draws a number from a fixed seed and stays while that number is below a threshold, which falls by a fifth
    each time the budget is passed: an even sample in one pass, of a length not known beforehand, the same on every
    machine. One warning line says what was left out. Raises BertJaxError when no text is left.
    """
    draw = random.Random(0).random
    kept: list[tuple[float, str]] = []
    threshold, size, total_lines, total_characters = 1.0, 0, 0, 0
    with Progress("reading texts") as progress:
        for n, text in enumerate(texts):
            if not isinstance(text, str):
                raise BertJaxError(f"text {n} of the training corpus is a {type(text).__name__}, not a string")
            for line in text.split("\n"):
                line = line.strip()
                if not line:
                    continue
                total_lines += 1
                total_characters += len(line)
                number = draw()
                if number < threshold:
                    kept.append((number, line))
                    size += len(line)
                while size > max_characters and len(kept) > 1:
                    threshold *= 0.8
                    kept = [entry for entry in kept if entry[0] < threshold] or kept[:1]
                    size = sum(len(entry[1]) for entry in kept)
            if n % 1000 == 0:
                progress.update(n, f"{total_characters / 1e6:.1f} M characters")
    if not kept:
        raise BertJaxError("the training corpus holds no text: a vocabulary needs at least one non-empty line")
    if len(kept) < total_lines:
        logger.warning(
            "vocabulary learnt from an even sample (seed 0) of %d of %d lines, %.1f of %.1f M characters",
            len(kept), total_lines, size / 1e6, total_characters / 1e6,
        )  # fmt: skip
    return [line for _, line in kept]


def warn_of_stripped(lines: list[str], categories: tuple[str, ...] = ("Mn",)) -> None:
    """One warning line where stripping accents, which goes with lower-casing, takes signs that are no accents: vowels of
    Devanagari and Thai, tones, the voicing of kana. ``categories``: Unicode's of the marks that are stripped."""
    text = unicodedata.normalize("NFD", "\n".join(lines[:: -(-len(lines) // LOOKED_AT)]))
    signs = "".join(sorted(char for char in set(text) if unicodedata.category(char) in categories and _is_sign(char)))
    found = Counter(re.findall(f"\\S[{signs}]+", text)) if signs else Counter()
    share = sum(count * (len(cluster) - 1) for cluster, count in found.items()) / max(1, len("".join(text.split())))
    if share > STRIPPED:
        ((example, _),) = found.most_common(1)
        logger.warning(
            "lower-casing strips vowel signs and the like, %.0f%% of all characters (%s becomes %s): --cased (lowercase=False) "
            "keeps them", 100 * share, unicodedata.normalize("NFC", example), example[0],
        )  # fmt: skip


def _is_sign(char: str) -> bool:
    """Whether a mark belongs to its letter as Unicode orders marks: vowel signs 0, nuktas and voicing 7 and 8, viramas 9, signs
    of single scripts from 84 to 132. Hebrew and Arabic points, which text leaves out at will, and accents have others."""
    kind = unicodedata.combining(char)
    return (kind in (0, 7, 8, 9) or 84 <= kind <= 132) and "VARIATION" not in unicodedata.name(char, "")
