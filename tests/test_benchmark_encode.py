"""benchmarks/encode.py without the sentences that it needs: `make bench` goes on, who named a folder is told."""

import sys

import encode
import pytest


def test_without_its_data_it_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(encode, "SHARED", tmp_path)
    monkeypatch.setattr(sys, "argv", ["encode.py", "--out", str(tmp_path / "found.json")])
    encode.main()
    assert "left out, for want of STS-B" in capsys.readouterr().err and not (tmp_path / "found.json").exists()


def test_a_folder_that_was_named_must_have_them(tmp_path):
    with pytest.raises(SystemExit, match=r"has 0 different sentences, not 10 \(--data names the folder with sts/\)"):
        encode.sentences(tmp_path, 10)
