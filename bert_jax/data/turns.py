"""Several kinds of examples, one batch of one kind at a time.

A batch says whose it is by a key of its own (an array without elements), so that the compiled step is one program for each
kind and nothing about it has to be read on the host.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bert_jax.errors import BertJaxError


def marker(name: str) -> str:
    """The batch key that says whose turn it is."""
    return f"turn_{name}"


class TakingTurns:
    """An endless iterator of batches, each from the source that is furthest behind its share; the first wins ties."""

    def __init__(self, sources: Sequence[Any], shares: Sequence[float], names: Sequence[str]):
        self._sources, self._shares, self._names = list(sources), np.asarray(shares), list(names)

    def __iter__(self) -> "TakingTurns":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        turn = int(np.argmin(self._given() / self._shares))
        return _marked(next(self._sources[turn]), self._names[turn])

    @property
    def epoch(self) -> float:
        """Examples in all until the first source has given each of its own once, as far as what was given tells: shares are of
        rows, and how many examples a packed row has is seen as they come."""
        given = [source.get_state()["examples"] for source in self._sources]
        share = given[0] / sum(given) if given[0] else self._shares[0] / self._shares.sum()
        return self._sources[0].epoch / share

    def get_state(self) -> dict[str, Any]:
        """Examples given in all, and by each source; JSON."""
        turns = [source.get_state() for source in self._sources]
        return {"examples": sum(state["examples"] for state in turns), "turns": turns}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there.

        Raises:
          BertJaxError: it was saved with other turns.
        """
        if len(state.get("turns", ())) != len(self._sources):
            raise BertJaxError("this run was begun with other task.turns: begin a new one, or set them as they were")
        for source, own in zip(self._sources, state["turns"], strict=True):
            source.set_state(own)

    def _given(self) -> np.ndarray:
        """Rows by each source: shares are of updates, and a packed row has several examples."""
        states = [source.get_state() for source in self._sources]
        return np.array([state.get("rows", state["examples"]) for state in states])


class OneAfterAnother:
    """Held-out batches of all sources, the first source's first."""

    def __init__(self, sources: Sequence[Any], names: Sequence[str]):
        self._sources, self._names = sources, names

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for source, name in zip(self._sources, self._names, strict=True):
            for batch in source:
                yield _marked(batch, name)


def _marked(batch: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return batch | {marker(name): np.zeros((len(batch["input_ids"]), 0), bool)} if name else batch
