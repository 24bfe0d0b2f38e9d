"""Warnings that say the same are said once, as long as they are asked to be."""

import logging
import threading

from bert_jax import finetuning
from bert_jax.errors import BertJaxError, each_warning_once

logger = logging.getLogger("bert_jax")


def test_a_warning_is_said_once_word_for_word(caplog):
    @each_warning_once()
    def read_twice():
        for count in (3, 3, 4):
            logger.warning("%d texts were cut", count)

    for _ in range(2):
        read_twice()
    assert caplog.messages == ["3 texts were cut", "4 texts were cut"] * 2, "another call says it again"
    logger.warning("3 texts were cut")
    logger.warning("3 texts were cut")
    assert caplog.messages[4:] == ["3 texts were cut"] * 2


def test_or_whatever_its_numbers(caplog):
    templates: set[str] = set()
    for count in (3, 4):
        with each_warning_once(templates):
            logger.warning("%d texts were cut", count)
    assert caplog.messages == ["3 texts were cut"]
    with each_warning_once(templates):
        other = threading.Thread(target=logger.warning, args=("%d texts were cut", 5))
        other.start()
        other.join()
    assert caplog.messages == ["3 texts were cut", "5 texts were cut"], "another stream's"


def test_nothing_stays_behind_an_error(monkeypatch):
    def refuse(experiment):
        raise BertJaxError("no")

    before = list(logger.filters)
    monkeypatch.setattr(finetuning, "_check_kind", refuse)
    for _ in range(2):
        try:
            finetuning.finetune(None, "x")
        except BertJaxError:
            pass
    assert logger.filters == before
