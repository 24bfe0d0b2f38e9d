"""Warnings that say the same are said once, as long as they are asked to be."""

import logging
import threading

import numpy as np
import pytest

from bert_jax import cli
from bert_jax.errors import BertJaxError, each_warning_once, out_of_memory
from bert_jax.finetuning import seeds

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
    monkeypatch.setattr(seeds, "check_kind", refuse)
    for _ in range(2):
        with pytest.raises(BertJaxError, match="^no$"):
            seeds.finetune(None, "x")
    assert logger.filters == before


def test_memory_that_does_not_suffice_is_a_line(tmp_path, monkeypatch, capfd):
    with pytest.raises(MemoryError) as caught:
        np.empty(2**56, np.int64)
    line = out_of_memory(caught.value)
    assert line.startswith("the memory of this machine does not suffice: end what else takes it, or give the data in parts")
    assert "(Unable to allocate 512. PiB" in line and "\n" not in line
    assert out_of_memory(MemoryError()).endswith("texts")
    assert "the memory of the device" in out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: 9 bytes"))
    assert out_of_memory(BertJaxError("RESOURCE_EXHAUSTED")) is out_of_memory(KeyError("x")) is None

    def inspect(arguments):
        np.empty(2**56, np.int64)

    monkeypatch.setattr(cli, "_inspect", inspect)
    assert cli.main(["inspect", str(tmp_path)]) == 1
    err = capfd.readouterr().err
    assert err.startswith("bert-jax: error: the memory of this machine does not suffice") and err.count("\n") == 1
