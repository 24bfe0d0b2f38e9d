"""When a ratio counts as fallen."""

import sys

import pytest

from benchmarks import quick

COMMITTED = (5.0, 4.0, 6.0)


@pytest.mark.parametrize(("found", "word"), [
    ((5.1, 4.5, 7.0), "as it was"), ((4.1, 3.0, 5.0), "as it was"),
    ((4.1, 3.0, 4.9), "lower than it has been, within noise"), ((3.9, 3.0, 6.0), "fallen"),
])
def test_a_median_below_every_committed_round_has_fallen(found, word):
    assert quick.verdict(found, COMMITTED) == word


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs the script where the step's ratio is as given."""
    monkeypatch.setattr(quick, "RESULTS", tmp_path / "quick.json")
    asked = []

    def run(ratio, *words):
        def measure(data, rounds):
            asked.append(rounds)
            return {"step": {"ours": {"ours_over_it": (1, 1, 1)}, "torch-sdpa": {"ours_over_it": ratio, "turns": [1.0]}}}

        monkeypatch.setattr(quick, "measure", measure)
        monkeypatch.setattr(sys, "argv", ["benchmarks/quick.py", *words])
        quick.main()
        return asked

    return run


def test_what_is_committed_is_compared_with(measured, capsys, tmp_path):
    assert measured(COMMITTED) == [quick.ROUNDS]
    assert "nothing to compare with" in capsys.readouterr().out and not (tmp_path / "quick.json").exists()
    assert measured(COMMITTED, "--commit")[-1] == quick.COMMITTED > quick.ROUNDS
    measured((4.5, 4.0, 5.5))
    assert "4.50 x (4.00 to 5.50), committed 5.00 x (4.00 to 6.00): as it was" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="slower than before against the same peer: step"):
        measured((3.9, 3.0, 5.5))


def test_a_ratio_that_could_not_be_measured_is_not_dropped(measured, monkeypatch, tmp_path):
    measured(COMMITTED, "--commit")
    before = (tmp_path / "quick.json").read_text()
    (tmp_path / "quick.json").write_text(before.replace('"step"', '"encode"'))
    with pytest.raises(SystemExit, match="encode would be lost"):
        measured(COMMITTED, "--commit")
