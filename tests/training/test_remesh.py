"""A run that moves from mesh to mesh ends where one that stayed does, with the same examples in the same order."""

import jax
import numpy as np
import pytest

from bert_jax.parallel.cluster import Cluster
from bert_jax.parallel.mesh import MeshConfig, make_mesh
from bert_jax.training import train as train_module
from bert_jax.training.pretrain import pretrain
from bert_jax.training.record import read

STEPS = 8
# The step to stop at -> the mesh up to there; LAMB and shared layers, which ALBERT has, once up and down again.
LEGS = {"bert": {2: (8, 1, 1), 4: (2, 2, 1), 6: (1, 1, 1), 8: (2, 2, 2)}, "albert": {4: (2, 2, 2), 8: (1, 1, 1)}}


class Stopping(Cluster):
    """One process that is asked to stop at a step."""

    def __init__(self, step: int):
        super().__init__()
        self._last = step

    def stop_at(self, step: int) -> bool:
        return step == self._last


def run(monkeypatch, experiment, store, workdir, sizes, until):
    devices = jax.devices()[: int(np.prod(sizes))]
    monkeypatch.setattr(train_module, "make_mesh", lambda _: make_mesh(MeshConfig(*sizes), devices))
    result = pretrain(experiment, store, workdir, Stopping(until))
    assert result.step == until and result.finished == (until == STEPS)
    assert jax.tree.leaves(result.params)[0].sharding.mesh.size == len(devices)
    return result


@pytest.mark.parametrize("family", ["bert", pytest.param("albert", marks=pytest.mark.slow)])
def test_from_eight_devices_to_four_to_one_and_back(monkeypatch, tiny_store, tiny_experiment, tmp_path, family):
    experiment = tiny_experiment(
        family, f"train.steps={STEPS}", "train.save_every=100", f"train.eval_every={STEPS}", "train.eval_batches=1",
        "train.log_every=1", "optimizer.learning_rate=1e-3",
    )
    stayed = run(monkeypatch, experiment, tiny_store, tmp_path / "stayed", (1, 1, 1), STEPS)
    for until, sizes in LEGS[family].items():
        moved = run(monkeypatch, experiment, tiny_store, tmp_path / "moved", sizes, until)
    for path, value in jax.tree.leaves_with_path(jax.device_get(moved.params)):
        other = jax.device_get(stayed.params)
        for key in path:
            other = other[key.key]
        np.testing.assert_allclose(value, other, atol=1e-5, rtol=0, err_msg=jax.tree_util.keystr(path))
    one, other = ([row for row in read(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
                  for name in ("stayed", "moved"))
    assert [row["step"] for row in one] == [row["step"] for row in other] == list(range(1, STEPS + 1))
    for left, right in zip(one, other, strict=True):  # another batch would differ in the second digit
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5) and left["examples_seen"] == right["examples_seen"]
