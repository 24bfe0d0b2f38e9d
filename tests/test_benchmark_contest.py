"""Contestants of a benchmark in processes of their own: turns, ratios, one that does not start, and what a file keeps."""

import itertools
import json
import textwrap
from collections import Counter

import pytest

from benchmarks.contest import Times, contest, keep, order, rates, ratio

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

contest.answer(run, 1, lambda: {{"name": name, "asked after": log.read_text().split("\\n").count(f"{{name}} 1")}})
"""


@pytest.fixture
def contestant(tmp_path, request):
    path = tmp_path / "contestant.py"
    path.write_text(textwrap.dedent(CONTESTANT.format(folder=str(request.config.rootpath / "benchmarks"))))
    return str(path)


@pytest.mark.slow
def test_they_take_turns(contestant, tmp_path):
    found = contest(contestant, ["ours", "slow"], [str(tmp_path / "log")], 3, 2)
    turns = ["ours 2", "slow 2", "slow 2", "ours 2", "ours 2", "slow 2"]
    assert (tmp_path / "log").read_text().split("\n")[:-1] == ["ours 1", "slow 1", *turns]
    assert {name: times.said for name, times in found.items()} == {
        name: {"name": name, "asked after": 1} for name in ("ours", "slow")
    }
    assert all(len(times.turns) == 3 and min(times.turns) >= 0.04 and times.first >= 0.02 for times in found.values())
    assert all(len(times.processor) == 3 and 0 <= sum(times.processor) < sum(times.turns) for times in found.values())
    middle, low, high = ratio(found["slow"].turns, found["ours"].turns)
    assert 1 < low <= middle <= high


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9])
def test_everybody_follows_everybody_equally_often(count):
    names = [f"c{number}" for number in range(count)]
    rounds = [order(names, number) for number in range(2 * count)]
    assert all(sorted(one) == names for one in rounds)
    for name in names:
        places = [one.index(name) for one in rounds]
        assert all(places.count(place) == 2 for place in range(count)), "everybody is first, second, ... equally often"
    pairs = Counter(pair for one in rounds for pair in itertools.pairwise(one))
    assert pairs == {(one, other): 2 for one, other in itertools.permutations(names, 2)}


@pytest.mark.parametrize("count", [7, 9])
def test_a_few_rounds_already_mix(count):
    """The seven rounds of benchmarks/step.py."""
    names = [f"c{number}" for number in range(count)]
    before = {name: set() for name in names}
    for number in range(7):
        for one, other in itertools.pairwise(order(names, number)):
            before[other].add(one)
    assert all(len(found) >= 4 for found in before.values()), before


def test_who_is_not_there_keeps_the_figures_of_a_former_run(tmp_path):
    path = tmp_path / "found.json"
    old = {"ours": {"speed": 1}, "flax": {"speed": 2}, "keras": {"speed": 3}}
    fresh = {"ours": {"speed": 4}, "flax": {"speed": 5}}
    keep(path, {"date": "one", "results": {"tiny": old, "base4": old}})
    runs = keep(path, {"date": "two", "results": {"tiny": fresh}})
    assert runs == json.loads(path.read_text())["runs"]
    assert runs == [
        {"date": "two", "results": {"tiny": fresh}},
        {"date": "one", "results": {"tiny": {"ours": {"speed": 1}, "keras": {"speed": 3}}, "base4": old}},
    ]
    keep(path, {"date": "three", "results": {"tiny": {"ours": {}, "keras": {}}, "base4": old}})
    assert [(run["date"], *run["results"]) for run in json.loads(path.read_text())["runs"]] == [
        ("three", "tiny", "base4"), ("two", "tiny"),
    ]


def test_ratios_are_taken_round_by_round():
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == (3.0, 2.0, 4.0)


def test_one_that_does_not_start_ends_all(contestant, tmp_path):
    with pytest.raises(SystemExit, match="broken has ended with status 4"):
        contest(contestant, ["ours", "broken"], [str(tmp_path / "log")], 1, 1)


def test_rates_are_of_contestants_that_say_the_same():
    said = {"vectors": [[0.1, 0.2], [0.3, 0.4]]}
    found = {"ours": Times(9.0, [2.0, 1.0, 4.0], said, []), "peer": Times(5.0, [4.0, 4.0, 4.0], said, [])}
    rows = rates(found, 100, "texts", "vectors", 1e-4)
    assert rows["ours"] == {"texts_per_second": 50.0, "first_seconds": 9.0, "ours_over_it": (1.0, 1.0, 1.0),
                            "turns": [2.0, 1.0, 4.0]}
    assert rows["peer"]["texts_per_second"] == 25.0 and rows["peer"]["ours_over_it"] == (2.0, 1.0, 4.0)
    found["peer"] = found["peer"]._replace(said={"vectors": [[0.1, 0.2], [0.3, 0.4002]]})
    with pytest.raises(SystemExit, match="the vectors of peer differ from ours by 2.0e-04"):
        rates(found, 100, "texts", "vectors", 1e-4)
