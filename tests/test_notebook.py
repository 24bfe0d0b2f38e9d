"""The notebook runs in a kernel of its own, as in Colab: with a loop that runs already, and its own way to show pictures."""

import os

import pytest

from tests.conftest import ROOT

# What makes it small enough for a test, and nothing else.
SMALLER = {
    "STEPS = 1_300": "STEPS = 8", 'write_docstrings("docstrings.txt")': 'write_docstrings("docstrings.txt", ["optax"])',
    "[:1000]": "[:40]", "eval_batches=10": "eval_batches=1",
}


@pytest.mark.slow
def test_every_cell_runs_and_shows_what_it_made(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "notebooks/first_steps.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    notebook.cells = [cell for cell in notebook.cells if "setup" not in cell.metadata.get("tags", ())]
    source = "".join(cell.source for cell in notebook.cells)
    for large, small in SMALLER.items():
        assert large in source
        for cell in notebook.cells:
            cell.source = cell.source.replace(large, small)
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    def of(words: str) -> tuple[set[str], str]:
        """Forms and texts of what the cell with these words shows."""
        (cell,) = [cell for cell in notebook.cells if words in cell.source and cell.cell_type == "code"]
        shown = [output["data"] for output in cell.outputs if "data" in output]
        streams = [output["text"] for output in cell.outputs if "text" in output]
        return {form for data in shown for form in data}, "\n".join([*(data.get("text/plain", "") for data in shown), *streams])

    forms, text = of("bert_jax.pretrain(")
    assert "step 8/8" in text and text.rstrip().endswith("finished=True)") and len(text) < 2000, "no parameters"
    assert "image/png" in of("curves.png")[0]
    assert "image/png" in of("axes[layer][head].imshow")[0], "the library has not taken the notebook's backend"
    assert of('bert_jax.load("model")')[1].startswith("Model(2 layers of width 128")
    forms, _ = of("done.scores")
    assert "text/markdown" in forms
    assert len(of("bert_jax.predict(")[1].splitlines()) == 2
    assert of("bert_jax.inspect(")[1].startswith("source      Hugging Face directory")
