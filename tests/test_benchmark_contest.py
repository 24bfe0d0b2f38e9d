"""Contestants of a benchmark in processes of their own: turns, ratios, and one that does not start."""

import textwrap

import pytest

from benchmarks.contest import contest, ratio

CONTESTANT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
import contest

name, log = sys.argv[2], Path(sys.argv[3])
if name == "broken":
    sys.exit(4)
print("a library says something")

def run(count):
    with log.open("a") as file:
        file.write(f"{{name}} {{count}}\\n")
    time.sleep(0.02 * count * (3 if name == "slow" else 1))

contest.answer(run, 1, {{"name": name}})
"""


@pytest.fixture
def contestant(tmp_path, request):
    path = tmp_path / "contestant.py"
    path.write_text(textwrap.dedent(CONTESTANT.format(folder=str(request.config.rootpath / "benchmarks"))))
    return str(path)


def test_they_take_turns(contestant, tmp_path):
    found = contest(contestant, ["ours", "slow"], [str(tmp_path / "log")], 3, 2)
    assert (tmp_path / "log").read_text().split("\n")[:-1] == ["ours 1", "slow 1", *["ours 2", "slow 2"] * 3]
    assert {name: times.said for name, times in found.items()} == {"ours": {"name": "ours"}, "slow": {"name": "slow"}}
    assert all(len(times.turns) == 3 and min(times.turns) >= 0.04 and times.first >= 0.02 for times in found.values())
    assert all(len(times.processor) == 3 and 0 <= sum(times.processor) < sum(times.turns) for times in found.values())
    middle, low, high = ratio(found["slow"].turns, found["ours"].turns)
    assert 1 < low <= middle <= high


def test_ratios_are_taken_round_by_round():
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == (3.0, 2.0, 4.0)


def test_one_that_does_not_start_ends_all(contestant, tmp_path):
    with pytest.raises(SystemExit, match="broken has ended with status 4"):
        contest(contestant, ["ours", "broken"], [str(tmp_path / "log")], 1, 1)
