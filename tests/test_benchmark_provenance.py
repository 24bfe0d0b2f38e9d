"""What a figure says of its making: code, command, load; and how a page says it."""

import subprocess

import pytest

from benchmarks import provenance


@pytest.fixture(autouse=True)
def asked_anew():
    provenance.code.cache_clear()
    yield
    provenance.code.cache_clear()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return git


def test_the_code_is_a_commit_and_whether_files_differ(repository, tmp_path):
    commit = repository("rev-parse", "HEAD")
    assert provenance.code() == commit[:12]
    (tmp_path / "file").write_text("two")
    assert provenance.code() == commit[:12]  # that of this process
    provenance.code.cache_clear()
    assert provenance.code() == f"{commit[:12]}-dirty"
    provenance.code.cache_clear()
    repository("tag", "-a", "v1", "-m", "v1")
    assert provenance.code() == "v1-dirty"


def test_without_git_or_a_repository_it_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.code() == "not recorded"
    provenance.code.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert provenance.code() == "not recorded"


def test_a_command_has_no_folders_of_this_machine(tmp_path, monkeypatch):
    root = tmp_path / "work/main"
    monkeypatch.setattr(provenance, "ROOT", root)
    words = [str(root / "benchmarks/step.py"), "--data", str(tmp_path / "work/shared/data"), "--keep", "/elsewhere/a store"]
    assert provenance.command(words) == "python benchmarks/step.py --data ../shared/data --keep '.../a store'"
    assert provenance.command(["benchmarks/step.py", "--out", "a.json"]) == "python benchmarks/step.py --out a.json"


def test_before_and_after(monkeypatch):
    loads = iter([(0.123, 5, 5), (1.987, 5, 5)])
    monkeypatch.setattr("os.getloadavg", lambda: next(loads))
    monkeypatch.setattr(provenance, "code", lambda: "abc")
    monkeypatch.setattr("sys.argv", ["benchmarks/step.py", "--rounds", "3"])
    begun = provenance.begin()
    run = provenance.ended(begun)
    assert begun["load"] == [0.12] and run["load"] == [0.12, 1.99]
    assert provenance.described(run) == (
        f"{run['date']}, `python benchmarks/step.py --rounds 3`, code abc, load 0.1 before and 2.0 after"
    )


def test_what_is_missing_is_said():
    assert provenance.described({}) == "date, command, code and load not recorded"
    assert provenance.described({"load": [7.04], "code": "abc"}) == "code abc, load 7.0 before, date and command not recorded"
    assert [provenance.listed("abc"[:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]
