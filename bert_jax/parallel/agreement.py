"""How the processes of a run tell each other that something failed, without their accelerators.

A collective would hang as soon as one process has an error to report instead of a number. The key-value store that
``jax.distributed`` keeps on process 0 does not: everyone says how it went and hears of the first failure.
"""

import itertools
import time

import jax
from jax._src import distributed  # the store has no public name

SILENCE = "process 0 did not answer"  # which the others may have heard otherwise
_objects = itertools.count()


class Agreement:
    """Rounds of agreement between all processes, which take part in the same rounds in the same order.

    Every process has to create its objects in the same order as the others. A run of one process agrees with itself.
    """

    def __init__(self, patience: float):
        """Args:
          patience: seconds that process 0 waits in one round for the slowest of the others.
        """
        self._patience = patience
        self._client = distributed.global_state.client if jax.process_count() > 1 else None
        self._prefix = f"bert_jax/agreement/{next(_objects)}"
        self._round = self._cleared = 0

    def failure(self, mine: str | None) -> str | None:
        """What the first process that failed has to say; None when none did.

        Args:
          mine: what went wrong on this process, if anything did.
        """
        if self._client is None:
            return mine
        index = jax.process_index()
        self._round += 1
        if index:
            self._client.key_value_set(f"{self._key}/{index}", _packed(mine))
        else:
            mine = mine or self._first_failure()
        try:
            return self._verdict(mine)
        except TimeoutError as silence:
            return str(silence)

    def told(self, text: str) -> str:
        """What process 0 says.

        Raises:
          TimeoutError: it said nothing.
        """
        if self._client is None:
            return text
        self._round += 1
        return self._verdict(text)

    @property
    def _key(self) -> str:
        return f"{self._prefix}/{self._round}"

    def _first_failure(self) -> str | None:
        deadline, failures = time.monotonic() + self._patience, []
        for other in range(1, jax.process_count()):
            answer = self._hear(f"{self._key}/{other}", deadline - time.monotonic())
            failures.append(_unpacked(answer) if answer else f"process {other} did not answer within {self._patience:.0f} s")
        for past in range(self._cleared, self._round):  # all have begun this round, so they have read the earlier ones
            self._client.key_value_delete(f"{self._prefix}/{past}")
        self._cleared = self._round
        return next((failure for failure in failures if failure is not None), None)

    def _verdict(self, text: str | None) -> str | None:
        if jax.process_index() == 0:
            self._client.key_value_set(f"{self._key}/verdict", _packed(text))
            return text
        # Process 0 waits for the slowest one first: it may rightly take that long, and a little longer, to answer.
        answer = self._hear(f"{self._key}/verdict", 1.1 * self._patience + 30)
        if answer is None:
            raise TimeoutError(SILENCE)
        return _unpacked(answer)

    def _hear(self, key: str, seconds: float) -> str | None:
        try:
            return self._client.blocking_key_value_get(key, max(1, int(1000 * seconds)))
        except jax.errors.JaxRuntimeError:  # too late, or process 0 and with it the store are gone
            return None


def _packed(text: str | None) -> str:
    return "+" if text is None else "-" + text


def _unpacked(text: str) -> str | None:
    return None if text == "+" else text[1:]
