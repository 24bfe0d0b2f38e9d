"""benchmarks/predict.py: whose texts it takes, and that everybody answers in the order of the texts."""

import sys

import predict
import pytest

import bert_jax
from bert_jax.tasks.base import finetuned_encoder

TEXTS = ["the cat sat", "a bird", "the dog ran under the red road", "she said why", "mat"]
PAIRS = [("the cat sat", "a bird"), ("red", "the dog ran under the road"), ("he", "she")]


def test_without_its_data_it_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(predict, "SHARED", tmp_path)
    monkeypatch.setattr(sys, "argv", ["predict.py", "--out", str(tmp_path / "found.json")])
    predict.main()
    assert "left out, for want of SST-2 and MRPC" in capsys.readouterr().err and not (tmp_path / "found.json").exists()


def test_the_texts_are_those_of_the_files(data_dir):
    assert len(set(predict.texts_of("sentences", data_dir, 500))) > 400
    assert all(len(pair) == 2 for pair in predict.texts_of("pairs", data_dir, 500))
    with pytest.raises(SystemExit, match="has 67,349 rows, not 67,350"):
        predict.texts_of("sentences", data_dir, 67_350)


@pytest.mark.slow
@pytest.mark.parametrize("given", [TEXTS, PAIRS], ids=["sentences", "pairs"])
def test_everybody_says_the_same(given, tiny_checkpoint, tmp_path, monkeypatch):
    import jax

    from bert_jax.models import api

    model = bert_jax.load(tiny_checkpoint)
    config = finetuned_encoder(model.config, predict.LABELS, init_std=0.5)
    bert_jax.save(model._replace(params=jax.device_get(api.init(config, jax.random.key(0))), config=config), tmp_path / "hf")
    bert_jax.save(bert_jax.load(tmp_path / "hf"), tmp_path / "onnx", format="onnx")
    monkeypatch.setattr(predict, "classifier", lambda: tmp_path / "hf")
    monkeypatch.setattr(predict, "exported", lambda: tmp_path / "onnx/onnx/model.onnx")
    monkeypatch.setattr(predict, "LENGTH", model.config.max_length)
    answers = {name: predict.contestant(name, 2)(given) for name in ("ours", *predict.PEERS)}
    assert abs(answers["ours"][0][0] - answers["ours"][1][0]) > 1e-3
    for found in answers.values():
        assert [value for row in found for value in row] == pytest.approx([v for row in answers["ours"] for v in row], abs=1e-4)
