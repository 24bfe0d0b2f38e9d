"""Texts to vectors: tokenise, run the encoder, pool, normalise. The numbers of sentence-transformers, without torch."""

import contextlib
import functools
import logging
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers.normalizers import Lowercase

from bert_jax.data.best_fit import MOST, best_fit, cheapest_row
from bert_jax.embedding.settings import Pooling, SentenceSettings
from bert_jax.errors import BertJaxError, check_several
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.progress import Progress
from bert_jax.replicas import replicas
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

_ENCODER = ("embeddings", "attention", "feed_forward", "lora", "mix")  # the parameters that the states heads read depend on
_TOKENISED_AT_ONCE = 4096  # texts: a portion is tokenised while the device computes the one before
_IN_FLIGHT = 2  # batches dispatched and not yet fetched: the host prepares one while the device computes another


def pool(
    hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"], pooling: tuple[Pooling, ...],
    positions: Int[Array, "B L"] | None = None,
) -> Float[Array, "B K*D"]:
    """Summaries of the states that ``mask`` marks, concatenated in the order of ``pooling``; float32.

    The formulas are those of sentence-transformers' Pooling module for rows padded on the right: ``cls`` is the first
    marked state, ``lasttoken`` the last one, ``mean_sqrt_len_tokens`` the sum over the square root of the number of
    tokens, ``weightedmean`` the mean with the positions 1 to L as weights (Muennighoff 2022, "SGPT"). A row in which
    nothing is marked gives zeros, but for ``cls``, which is its first state; the reference's maximum is -inf there.
    ``positions`` count from 0; None: from the beginning of the row.
    """
    hidden, marked = hidden.astype(jnp.float32), mask[:, :, None]
    anything = mask.any(axis=1, keepdims=True)

    def weighted_sum(weights):  # (weights are 0 where nothing is marked)
        return jnp.einsum("bl,bld->bd", weights, hidden, precision="highest")

    def state_at(position):
        return jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]

    def summary(mode: Pooling):
        ones, places = mask.astype(jnp.float32), mask * (1.0 + (jnp.arange(mask.shape[1]) if positions is None else positions))
        count, weight = (jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0) for weights in (ones, places))
        match mode:
            case "cls":
                return state_at(jnp.argmax(mask, axis=1))
            case "max":
                return jnp.where(anything, jnp.where(marked, hidden, -jnp.inf).max(axis=1), 0.0)
            case "mean":
                return weighted_sum(ones) / count
            case "mean_sqrt_len_tokens":
                return weighted_sum(ones) / jnp.sqrt(count)
            case "weightedmean":
                return weighted_sum(places) / weight
            case "lasttoken":
                return jnp.where(anything, state_at(mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)), 0.0)

    return jnp.concatenate([summary(mode) for mode in pooling], axis=-1)


def embed(
    params: api.Params,
    config: EncoderConfig,
    tokenizer: Tokenizer,
    settings: SentenceSettings,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """One vector per text, in the order of ``texts``: float32 [n, D * number of poolings], of the states that heads read
    (:class:`bert_jax.models.api.Outputs`: K times as wide where K layers are concatenated).

    Texts are tokenised in a thread, some thousands at a time, while the device computes those before. Short ones share rows, of
    a length that suits the first thousands, in which each sees itself alone: one shape, and hardly any padding. Longer ones,
    and those of a call with few of them, are sorted by length, so that a batch holds texts of about one length; it is padded to
    one of a few lengths, and each of those compiles once in a process. ``[MASK]`` and its like in a text are the special
    tokens, as they are in sentence-transformers. Texts of more than ``settings.max_length`` tokens (or than the position table
    has rows) are cut; one warning line says how many.

    Args:
      params, config: an encoder; its heads are not run. Give arrays on the device where calls are many and small.
      prompt: the name of one of ``settings.prompts``; None takes the default prompt, if there is one.
      batch_size: texts that a device computes at once, or four times the rows that short texts share.
      progress: whether stderr says how far it is, from two seconds on.

    Raises:
      BertJaxError: an unknown prompt, a prompt that leaves no room for text, a text that is not a string, or ids that
        the encoder has no embedding for.
    """
    texts, opening = _checked(texts), settings.prompt_text(prompt)
    if batch_size < 1:
        raise BertJaxError(f"batch_size is {batch_size}: it must be at least 1")
    vectors = np.zeros((len(texts), config.hidden_width * config.concatenated * len(settings.pooling)), np.float32)
    if not texts:
        return vectors
    limit = settings.max_length if config.positions == "relative" else min(settings.max_length, config.max_length)
    first = 0  # the first position that is pooled
    if opening and not settings.include_prompt:
        alone = tokenizer.build(_encode(tokenizer, [opening], settings.lowercase)[0])[0]
        if len(alone) >= limit:
            raise BertJaxError(f"the prompt {opening!r} fills all {limit} tokens: nothing of a text would be pooled")
        first = len(alone) - (alone[-1] in tokenizer.special_ids)

    portions = _sequences(tokenizer, texts, opening, settings.lowercase, limit)
    with Progress("embedding", len(texts), progress) as bar, contextlib.closing(portions):
        devices = replicas()
        encoder = devices.hold({part: params[part] for part in _ENCODER if part in params})
        together, shared = batch_size * devices.count, max(1, batch_size // 4) * devices.count
        run = functools.partial(
            _sentence_vectors, first=first, config=config, pooling=settings.pooling, normalize=settings.normalize
        )
        pending: deque[tuple[np.ndarray, Array]] = deque()

        def fetch():
            rows, computed = pending.popleft()
            computed = np.asarray(computed)
            there = rows >= 0  # of texts that share rows [B, P]; else all
            vectors[rows[there]] = computed[: len(rows)][there]
            bar.advance(int(there.sum()))

        def compute(batches):
            for rows, batch in batches:
                pending.append((rows, devices.run(run, encoder, batch)))
                if len(pending) > _IN_FLIGHT:
                    fetch()

        ids: dict[int, np.ndarray] = {}
        short, long, cut = [], [], 0  # texts that wait for others
        length = 0  # of rows that texts share
        for start, portion in portions:
            if (largest := max((int(one.max()) for one, _ in portion if len(one)), default=0)) >= config.vocab_size:
                raise BertJaxError(f"token id {largest} is beyond the vocabulary of {config.vocab_size}: not its tokenizer")
            if not start and len(texts) >= together:
                sizes = np.array([len(one) for one, _ in portion if len(one)], int)
                alone = np.array([min(_round_up(size), limit) for size in sizes.tolist()], int)
                length = cheapest_row(sizes, alone, shared, together, config.hidden_width) or 0
            for number, (one, whole) in enumerate(portion, start):
                ids[number] = one
                (short if 0 < len(one) <= length else long).append(number)
                cut += not whole
            if len(short) >= together:
                compute(_shared_rows(ids, short, length, tokenizer.pad_id, shared))
                short = []
            if len(long) >= _TOKENISED_AT_ONCE:
                compute(_batches(ids, long, tokenizer.pad_id, devices.rows(batch_size, len(long)), limit))
                long = []
        rest = short + long
        compute(_batches(ids, rest, tokenizer.pad_id, devices.rows(batch_size, len(rest)), limit))
        while pending:
            fetch()
    if cut:
        logger.warning("%d of %d texts have more than %d tokens: the rest of them was cut", cut, len(texts), limit)
    return vectors


@functools.partial(jax.jit, static_argnames=("config", "pooling", "normalize"))
def _sentence_vectors(
    params: api.Params,
    batch: tuple[Int[Array, "B L"], Int[Array, " B"] | Int[Array, "B P"]],
    *,
    first: int,
    config: EncoderConfig,
    pooling: tuple[Pooling, ...],
    normalize: bool,
) -> Float[Array, "B *P K*D"]:
    """Of texts, by ids and their lengths: a row each [B], or side by side in rows [B, P] (0: none)."""
    ids, lengths = batch
    places = jnp.arange(ids.shape[1])
    if lengths.ndim == 1:
        mask = places < lengths[:, None]
        hidden = api.apply(params, config, {"input_ids": ids, "attention_mask": mask}).hidden
        vectors = pool(hidden, mask & (places >= first), pooling)
    else:
        ends = jnp.cumsum(lengths, axis=1)
        inside = (places < ends[:, :, None]) & (places >= (ends - lengths)[:, :, None])  # [B, P, L]
        example = (places >= ends[:, :, None]).sum(axis=1)
        begin = jnp.where(inside, (ends - lengths)[:, :, None], 0).sum(axis=1)
        positions = jnp.where(inside.any(axis=1), places - begin, 0)  # what is no text may be beyond the position table
        batch = {"input_ids": ids, "attention_mask": inside.any(axis=1), "example_ids": example}
        if config.positions == "absolute":  # relative ones are the same wherever a text begins
            batch["position_ids"] = positions
        hidden = api.apply(params, config, batch).hidden
        each = jax.vmap(lambda mask: pool(hidden, mask, pooling, positions), in_axes=1, out_axes=1)
        vectors = each(inside & (positions >= first)[:, None])
    if normalize:
        vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors


def _checked(texts: Sequence[str]) -> list[str]:
    check_several(texts)
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise BertJaxError(f"text {i} is a {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BertJaxError(f"text {i} holds a lone surrogate at character {error.start}: decode it as UTF-8") from None
    return texts


def _sequences(
    tokenizer: Tokenizer, texts: list[str], opening: str, lowercase: bool, limit: int
) -> Iterator[tuple[int, list[tuple[np.ndarray, bool]]]]:
    """Portions of ``texts`` and the number of their first one, made in a thread: of each text int32 ids, ``opening`` before it
    and the special tokens around both, at most ``limit`` of them; and whether that is all of it."""
    room = limit - len(tokenizer.build(())[0])
    if room < 1:
        raise BertJaxError(f"the encoder takes {limit} tokens at most: the special tokens leave no room for text")

    def portion(start: int):
        encoded = _encode(tokenizer, [opening + text for text in texts[start : start + _TOKENISED_AT_ONCE]], lowercase)
        return start, [(tokenizer.build(one[:room])[0], len(one) <= room) for one in encoded]

    thread = ThreadPoolExecutor(1)
    try:
        yield from thread.map(portion, range(0, len(texts), _TOKENISED_AT_ONCE))
    finally:
        thread.shutdown(cancel_futures=True)


def _encode(tokenizer: Tokenizer, texts: list[str], lowercase: bool) -> list[np.ndarray]:
    """int32 ids of each text, nothing added; special pieces in a text are recognised."""
    if lowercase and not tokenizer.lowercase:
        special = re.compile("|".join(re.escape(tokenizer.piece(i)) for i in tokenizer.special_ids))
        texts = [_lowercased(text, special) for text in texts]
    return tokenizer.encode_batch(texts, special=True)


def _lowercased(text: str, special: re.Pattern[str]) -> str:
    """Lower case by the rule that transformers' tokenizers use (one character at a time), special pieces left alone."""
    lower, parts, end = Lowercase().normalize_str, [], 0
    for match in special.finditer(text):
        parts += lower(text[end : match.start()]), match[0]
        end = match.end()
    return "".join(parts) + lower(text[end:])


def _shared_rows(
    ids: Mapping[int, np.ndarray], texts: list[int], length: int, pad_id: int, rows: int
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """(indices of ``texts`` [B, P], -1: none; (ids int32 [B, L], lengths int32 [B, P])); B is always ``rows``, L ``length``."""
    row_of = best_fit(np.array([len(ids[k]) for k in texts]), length, MOST)
    order = np.argsort(row_of, kind="stable")
    together = np.split(np.array(texts)[order], np.flatnonzero(np.diff(row_of[order])) + 1)
    for start in range(0, len(together), rows):
        chosen, lengths = np.full((rows, MOST), -1), np.zeros((rows, MOST), np.int32)
        padded = np.full((rows, length), pad_id, np.int32)
        for k, row in enumerate(together[start : start + rows]):
            joined = np.concatenate([ids[text] for text in row])
            padded[k, : len(joined)] = joined
            chosen[k, : len(row)], lengths[k, : len(row)] = row, [len(ids[text]) for text in row]
        yield chosen, (padded, lengths)


def _batches(
    ids: Mapping[int, np.ndarray], texts: list[int], pad_id: int, rows: int, limit: int
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """(indices of ``texts``, (ids int32 [B, L], lengths int32 [B])), longest first; B and L take few values.

    A batch has as many ``rows``; those beyond the texts are empty.
    """
    order = sorted(texts, key=lambda text: -len(ids[text]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        padded = np.full((rows, min(_round_up(len(ids[chosen[0]])), limit)), pad_id, np.int32)
        lengths = np.zeros(rows, np.int32)
        for k, text in enumerate(chosen):
            lengths[k] = len(ids[text])
            padded[k, : lengths[k]] = ids[text]
        yield np.array(chosen), (padded, lengths)


def _round_up(length: int) -> int:
    """To 4, 8, 12 ... 32, 48, 64, 96, 128, 192 ... tokens: 16 lengths up to 512. Sentences are short, and half a second
    of compilation costs as much as 200 of them on two cores: steps of 4 pay there, finer ones beyond 32 do not."""
    step = max(4, (1 << (length - 1).bit_length()) // 4 if length > 32 else 0)
    return max(-(-length // step), 1) * step
