"""Tables of sentences: every format, parts of a file, the labels that it has, and one clear line for what is wrong."""

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import BertJaxError
from bert_jax.tasks.files import text_of
from bert_jax.tasks.tables import Rows, Table, in_file, kind_of, labels_of, listed, place, separated
from bert_jax.tasks.texts import open_texts


def write(path: Path, text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_every_format(tmp_path, end):
    tsv = write(tmp_path / f"a.tsv{end}", '\ufeffone\ttwo\tlabel\r\n"so\tthat " was\tyes\r\n\nb\u2028c\t c \tno\n')
    assert Table(tsv, ("one", "two"), "label").read() == ([('"so', 'that " was'), ("b\u2028c", "c")], ["yes", "no"])
    csv = write(tmp_path / f"a.csv{end}", '"a, ""b""\nc",c,1.5\nd,e,2\n')
    assert Table(csv, ("0",), "2").read() == ([('a, "b"\nc',), ("d",)], ["1.5", "2"])
    lines = [{"text": "ä\n", "other": 3, "y": 1}, {"text": "b", "y": False}, {"y": 0.5, "text": "c"}]
    jsonl = write(tmp_path / f"a.jsonl{end}", "\n".join(map(json.dumps, lines)) + "\n\n")
    assert Table(jsonl, ("text",), "y").read() == ([("ä",), ("b",), ("c",)], ["1", "false", "0.5"])
    assert Table(csv, ("0",)).read() == ([('a, "b"\nc',), ("d",)], [])


@pytest.mark.parametrize(("name", "text", "message"), [
    ("x.tsv", "a\tb\n1\t2\n", "no column 'label'; there are a, b"),
    ("x.tsv", "", "x.tsv: no rows: it is empty"),
    ("x.csv", "\n", "x.csv: no rows: it is empty"),
    ("x.jsonl", "\n", "no rows"),
    ("x.csv", "a;label\nx;1\n", "no column 'a'; there are a;label: are its fields apart by ';'. in .*csv they have"),
    ("x.tsv.gz", "a,label\nx,1\n", "are its fields apart by ','. in .*tsv they have to be by tabs"),
    ("x.csv", "other\nx\n", "no column 'a'; there are other$"),
    ("x.tsv", "a\tlabel\n", "no rows"),
    ("x.tsv", "a\tlabel\nx\n", "line 2 has 1 fields, the first line 2"),
    ("x.csv", 'a,label\n"x\ny",1\nx,y,z\n', "line 4 has 3 fields, the first line 2"),
    ("x.tsv", "a\tlabel\n\n \t1\n", "line 3 has nothing in column 'a'"),
    ("x.tsv", "a\tlabel\nx\t \n", "line 2 has nothing in column 'label'"),
    ("x.csv", "a,label,a\nx,1,y\n", "2 columns have the name 'a'"),
    ("x.csv", "a,label,b,b\nx,1,y,z\n", None),  # nobody asks for them
    ("x.csv", 'a,label\nx,"1\n', "line 2: unexpected end of data: is a quotation mark missing?"),
    ("x.tsv", b"a\tlabel\nx\t1\n\xe4\t0\n", "line 3 is not UTF-8 .byte 0xe4."),
    ("x.tsv.gz", b"a\tlabel\nx\t1\n\xe4\t0\n", "line 3 is not UTF-8 .byte 0xe4."),
    ("x.jsonl", '{"a": "x", "label": 1}\n{"b": "x"}\n', "no column 'a'; line 2 has b"),
    ("x.jsonl", '{"a": "x", "label": 1}\n{"a"\n', "line 2 is not JSON"),
    ("x.jsonl", '{"a": "x", "label": "\\ud83d"}\n', "line 1: column 'label' has half a character"),
    ("x.jsonl", "[1, 2]\n", "line 1 is no JSON object"),
    ("x.jsonl", '{"a": ["x"], "label": 1}\n', "line 1: column 'a' is neither text nor a number"),
    ("x.jsonl", '{"a": "x", "label": null}\n', "line 1 has nothing in column 'label'"),
])
def test_tables_that_are_wrong(tmp_path, name, text, message):
    table = Table(write(tmp_path / name, text), ("a",), "label")
    if message is None:
        assert table.read() == ([("x",)], ["1"])
        return
    with pytest.raises(BertJaxError, match=message) as error:
        table.read()
    assert "\n" not in str(error.value) and str(error.value).startswith(table.path)


def test_what_is_no_table(tmp_path):
    with pytest.raises(BertJaxError, match=r"none.tsv: cannot be read"):
        Table(str(tmp_path / "none.tsv"), ("a",), "label").read()
    with pytest.raises(BertJaxError, match=r"\*.tsv, \*.csv or \*.jsonl"):
        Table("x.xlsx", ("a",), "label").read()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,label\nx,1\n" * 100)[:-30])
    with pytest.raises(BertJaxError, match="a damaged gzip file"):
        Table(str(tmp_path / "a.csv.gz"), ("a",), "label").read()
    path = write(tmp_path / "a.tsv", "x\t1\ny\t2\n")
    with pytest.raises(BertJaxError, match="no column 2; there are 0 to 1"):
        Table(path, ("0",), "2").read()
    for texts, label in ((("a",), "a"), (("a", "a"), "b"), ((), "a"), (("a", "b", "c"), "d")):
        with pytest.raises(BertJaxError, match="name (every column once|one column)"):
            Table(path, texts, label)
    for wrong in ({"rows": (1,)}, {"rows": (2, 2)}, {"rows": (-1, 2)}, {"share": (0.0, 1.1)}, {"share": (0.9, 0.1)}):
        with pytest.raises(BertJaxError, match="say from where up to where"):
            Table(path, ("0",), "1", **wrong)
    with pytest.raises(BertJaxError, match=r"rows=\(1, 3\), and there are 2"):
        Table(path, ("0",), "1", rows=(1, 3)).read()
    with pytest.raises(BertJaxError, match=r"no rows in share=\(0.0, 1e-09\)"):
        Table(path, ("0",), "1", share=(0.0, 1e-9)).read()


def test_damaged_lines_are_skipped_where_that_is_asked_for(tmp_path, caplog):
    table = Table(write(tmp_path / "a.tsv", "a\tlabel\nx\t1\ny\nz\t2\t3\n\t4\n"), ("a",), "label")
    assert table.read(damaged="skip") == ([("x",)], ["1"])
    assert "3 lines that lack fields or have too many were skipped" in caplog.text


def test_ranges_of_rows(tmp_path):
    path = write(tmp_path / "a.csv", "t,y\n" + "".join(f"text {k},{k}\n" for k in range(10)))
    table = Table(path, ("t",), "y", rows=(3, 5))
    assert table.read() == ([("text 3",), ("text 4",)], ["3", "4"])
    assert Table(path, ("t",), rows=(0, 10)).read().texts == Table(path, ("t",)).read().texts


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=40),
       cuts=st.lists(st.floats(0.01, 0.99), max_size=3, unique=True))
def test_parts_are_the_whole_and_share_no_text(tmp_path_factory, texts, cuts):
    path = write(tmp_path_factory.getbasetemp() / "parts.csv", "".join(f"{text},{k}\n" for k, text in enumerate(texts)))
    whole, parts, borders = Table(path, ("0",), "1").read(), [], [0.0, *sorted(cuts), 1.0]
    for share in zip(borders, borders[1:], strict=False):
        try:
            parts.append(Table(path, ("0",), "1", share=share).read())
        except BertJaxError:
            parts.append(Rows([], []))
    assert sorted(label for part in parts for label in part.labels) == sorted(whole.labels)
    every = [set(part.texts) for part in parts]
    assert sum(map(len, every)) == len(set().union(*every))
    for part in parts:  # in the order of the file, each label beside its text
        assert [int(label) for label in part.labels] == sorted(int(label) for label in part.labels)
        assert all((texts[int(label)],) == text for text, label in zip(part.texts, part.labels, strict=True))


def test_shares_are_as_large_as_they_say():
    rng = random.Random(0)
    places = [place((str(rng.random()), "b")) for _ in range(4000)]
    assert abs(sum(one < 0.9 for one in places) / 4000 - 0.9) < 0.02
    assert place(("a", "b")) == place(("a", "b")) != place(("ab", "")) and place(("\ud800",)) < 1


def labelled(tmp_path, labels) -> Table:
    return Table(write(tmp_path / "l.tsv", "".join(f"text {k}\t{label}\n" for k, label in enumerate(labels))), ("0",), "1")


def test_labels_of_a_table(tmp_path):
    assert labels_of(labelled(tmp_path, ["b", "a", "b", "10"])) == ("10", "a", "b")
    assert labels_of(labelled(tmp_path, ["10", "9", "-1"])) == ("-1", "9", "10")
    assert labels_of(labelled(tmp_path, range(200))) == tuple(map(str, range(200)))
    assert len(labels_of(labelled(tmp_path, "abcdefghijklmnopqrst"))) == 20
    with pytest.raises(BertJaxError, match="30 different labels in 30 rows, such as .*is this the column of the label"):
        labels_of(labelled(tmp_path, [f"a whole sentence, number {k}" for k in range(30)]))
    with pytest.raises(BertJaxError, match="every row has the label 'a'"):
        labels_of(labelled(tmp_path, "aaa"))
    with pytest.raises(BertJaxError, match="no labels: name their column"):
        labels_of(Table(labelled(tmp_path, "ab").path, ("0",)))


@pytest.mark.parametrize(("labels", "ways"), [
    (["0", "1", "1.0", "1"], r"'1' \(rows 2, 4\) and '1.0' \(row 3\)"), (["01", "1", "x"], r"'01' \(row 1\) and '1' \(row 2\)"),
    (["2.50", "-1", "2.5"], r"'2.50' \(row 1\) and '2.5' \(row 3\)"),
])
def test_a_number_that_is_written_in_two_ways_is_no_two_classes(labels, ways, tmp_path):
    with pytest.raises(BertJaxError, match=f"l.tsv: the labels {ways} are one number, and would be two"):
        labels_of(labelled(tmp_path, labels))
    large = ("90071992547409921", "90071992547409922")  # as floats they are one
    assert labels_of(labelled(tmp_path, large)) == large


def test_decimal_commas_are_told_of(tmp_path, caplog):
    for labels in (["0,5", "1", "2,5"], ["1.000,5", "2"], ["-0,5", "0.5"]):
        caplog.clear()
        assert kind_of(labelled(tmp_path, labels)) == "classification"
        comma = next(label for label in labels if "," in label)
        assert f"l.tsv: labels such as '{comma}' are taken for names of classes: values need a decimal point" in caplog.text
    caplog.clear()
    for labels in (["a,b", "1,5", "1"], ["1.2.3", "1.2.4"]):
        assert kind_of(labelled(tmp_path, labels)) == "classification"
    assert not caplog.text


def test_kinds_of_labels(tmp_path):
    with pytest.raises(BertJaxError, match="30 different whole numbers in 90 rows: say whether they are values or classes"):
        kind_of(labelled(tmp_path, [str(1990 + n % 30) for n in range(90)]))
    assert kind_of(labelled(tmp_path, [str(n % 30) for n in range(400)])) == "classification"
    assert kind_of(labelled(tmp_path, ["0", "1", "5"])) == kind_of(labelled(tmp_path, ["1.5", "x"])) == "classification"
    assert kind_of(labelled(tmp_path, ["1.0", "2.0"])) == "classification"
    assert kind_of(labelled(tmp_path, ["1", "2.5", "-3e-2"])) == "regression"
    with pytest.raises(BertJaxError, match="values that are not finite in rows 2, 3, 4 and 1 more, the first is 'nan'"):
        kind_of(labelled(tmp_path, ["1.5", "nan", "inf", "-inf", "NaN"]))


def test_a_few_labels_that_are_no_numbers_make_no_classes(tmp_path):
    ratings = [f"{1 + k % 9 / 2}" for k in range(199)]
    for odd in ("unknown", "nan", "NA", "4,5", "inf"):
        wrong = f"199 labels are numbers, not so row 200, the first is '{odd}': mend it, or take the row out; --kind class"
        with pytest.raises(BertJaxError, match=wrong):
            kind_of(labelled(tmp_path, [*ratings, odd]))
    with pytest.raises(BertJaxError, match="not so rows 1, 2, 3 and 1 more, the first is 'stars': name the columns, do not"):
        kind_of(labelled(tmp_path, ["stars", "x", "y", "z", *ratings]))
    with pytest.raises(BertJaxError, match="99 labels are numbers, not so row 1,"):
        kind_of(labelled(tmp_path, ["label", *"01" * 49, "1"]))
    assert kind_of(labelled(tmp_path, ["1"] * 9 + ["x"])) == "classification", "a tenth may be a class"


def test_rows_of_a_part_have_their_numbers_in_the_file(tmp_path):
    """Rows with the same texts are told apart by their order."""
    path = write(tmp_path / "x.tsv", "".join(f"text {k % 40}\t{k}\n" for k in range(100)))
    for part, share in (((), (0.0, 0.5)), ((), (0.5, 1.0)), ((30, 90), (0.2, 0.7)), ((7, 9), ()), ((), ())):
        table = Table(path, ("0",), "1", part, share)
        rows = table.read()
        assert in_file(table, rows, range(1, len(rows.texts) + 1)) == [int(label) + 1 for label in rows.labels]


def test_rows_in_messages():
    assert listed([7]) == "row 7" and listed([1, 2, 3]) == "rows 1, 2, 3" and listed(range(1, 6)) == "rows 1, 2, 3 and 2 more"


@pytest.mark.parametrize(("file", "texts", "label", "rows", "kind"), [
    ("chem/suzuki_random_split_0.tsv", ("rxn",), "y", 5760, "regression"),
    ("sts/stsb/stsb-zh-dev.csv", ("0", "1"), "2", 1500, "regression"),
    ("glue/rte/dev.tsv", ("sentence1", "sentence2"), "label", 277, "classification"),
    ("kg/chnsenticorp/dev.tsv", ("text_a",), "label", 1200, "classification"),
])
def test_real_files(data_dir, file, texts, label, rows, kind):
    table = Table(str(data_dir / file), texts, label)
    assert len(table.read().texts) == rows and kind_of(table) == kind


def test_quotation_marks_of_a_spreadsheet_in_a_tsv_are_said_to_stay(tmp_path, caplog):
    path = tmp_path / "x.tsv"
    path.write_text('text\tlabel\nHe said "no"\t0\n"quoted"\t1\n"He said ""no"""\t1\n"Never ""again"""\t1\n')
    rows = Table(str(path), ("text",), "label").read()
    assert rows.texts[2] == ('"He said ""no"""',)
    assert len(caplog.messages) == 1 and "line 4 has a field in quotation marks" in caplog.text
    caplog.clear()
    assert [row[0] for row in open_texts(str(path), ("text",)).rows][1] == '"quoted"' and len(caplog.messages) == 1


def test_published_files_have_no_such_marks(data_dir, caplog):
    paths = [path for name in ("mrpc", "cola/raw", "rte", "sst2") for path in (data_dir / "glue" / name).glob("*.tsv")]
    assert len(paths) > 8
    for path in paths:
        list(separated(text_of(str(path)), str(path)))
    assert "quotation marks" not in caplog.text


def test_names_that_are_numbers_are_said_to_be_an_example(tmp_path, caplog):
    """As pandas writes columns without names: what stands there became an example without a word."""
    path = tmp_path / "x.csv"
    path.write_text("0,1\na cat,1\na dog,0\n")
    assert Table(str(path), ("0",), "1").read().texts[0] == ("0",)
    assert [row[0] for row in open_texts(str(path), ("0",)).rows][0] == "0"
    assert caplog.text.count("the first line, 0, 1, is an example: if these are names, take that line out") == 2
    caplog.clear()
    path.write_text("a cat,1\na dog,0\n")
    Table(str(path), ("0",), "1").read()
    assert not caplog.messages
