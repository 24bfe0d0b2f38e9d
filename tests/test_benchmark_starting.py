"""benchmarks/starting.py: every reading in a process of its own, the second compilation from what the first one kept."""

import json
import os
import sys

import performance
import pytest
import starting


def test_a_step_is_compiled():
    found = starting.compiled("bert_tiny_128")
    assert set(found) == {"traced", "compiled"} and min(found.values()) > 0


def test_readings_and_their_table(monkeypatch, tmp_path, capfd):
    """The help really runs; what takes minutes is answered for."""
    asked, caches = [], []

    def said(command, environment):
        asked.append(command)
        assert not {"JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"} & environment.keys(), "whatever this process has does not count"
        if "plan" in command:
            assert command[command.index("--topology") + 1] == "v5e:1x1"
            return {"compile_seconds": 40.0}
        caches.append(environment["XDG_CACHE_HOME"])
        return {"traced": 2.0, "compiled": 1.5 if os.listdir(caches[-1]) else _fill(caches[-1])}

    def _fill(folder):
        open(os.path.join(folder, "program"), "w").close()
        return 20.0

    monkeypatch.setattr(starting, "said", said)
    monkeypatch.setattr(starting.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "argv", [
        "starting.py", "--rounds", "2", "--configs", "bert_base_128", "--json", str(tmp_path / "found.json")])
    starting.main()
    assert "round 2 of 2: bert_base_128: traced 2.0 s, compiled 20.0 s, kept 1.5 s, chip 40.0 s" in capfd.readouterr().out
    assert caches[0] == caches[1] != caches[2] == caches[3] and not os.path.exists(caches[0])
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["help"]) == 2 and min(found["help"]) > min(found["python"]) > 0
    text = performance.starting(found)
    assert "| the step of `bert_base_128`: compiled for this processor | 20.0 s | 20.0, 20.0 |" in text
    assert "XLA's TPU compiler | 40.0 s | 40.0, 40.0 |" in text and "| `bert-jax --help` |" in text


def test_a_process_that_fails_ends_it_with_one_line():
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(SystemExit, match=r"SystemExit\(3\)' ended with status 3: see above; nothing was written"):
        starting.said(failing, dict(os.environ))
