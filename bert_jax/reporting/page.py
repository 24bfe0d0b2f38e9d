"""One HTML file about fine-tuning that opens from disk: everything is inside it, and nothing is fetched."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from bert_jax.files import write_whole
from bert_jax.reporting.judged import Judged
from bert_jax.reporting.table import Scores, cells

SHOWN = 1_000  # characters of a text


def write(
    path: Path, *, title: str, scores: Scores, summary: str, pictures: Sequence[tuple[str, Path]], hardest: Sequence[Judged],
    columns: Sequence[str], configuration: str, facts: Mapping[str, str],
) -> None:
    """Writes the page, whole or not at all.

    Args:
      summary: a paragraph under the title. pictures: what each shows, and its PNG file.
      hardest: the wrong examples to list; ``columns``: names of their texts.
      configuration: as text. facts: command, versions, time and the like, by name.
    """
    head, body = cells(scores)
    sections = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(summary)}</p>",
        _table(head, body, "numbers"),
        *([f"<p>{html.escape(scores.note)}</p>"] if scores.note else []),
        *(f"<figure><img alt={_quoted(what)} src='data:image/png;base64,{_base64(picture)}'>"
          f"<figcaption>{html.escape(what)}</figcaption></figure>" for what, picture in pictures),
    ]
    if hardest:
        names = [*columns[: len(hardest[0].texts)], "right", "predicted"]
        some = hardest[0].probability is not None
        rows = [[*map(_cut, one.texts), _cut(one.label), _cut(one.prediction)] + ([f"{one.probability:.3f}"] if some else [])
                for one in hardest]
        names += ["probability"] * some
        sections.append(f"<h2>The {len(rows)} hardest wrong examples</h2>" + _table(names, rows, "texts"))
    sections.append("<h2>How it was made</h2>" + _table(["", ""], [list(fact) for fact in facts.items()], "texts"))
    sections.append(f"<h2>Configuration</h2><pre>{html.escape(configuration)}</pre>")
    write_whole(path, PAGE.format(title=html.escape(title), body="\n".join(sections)).encode("utf-8", "xmlcharrefreplace"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag} dir='auto'>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    names = line(head, "th") if any(head) else ""
    return f"<div class='wide'><table class='{style}'>{names}{''.join(line(row, 'td') for row in rows)}</table></div>"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _quoted(text: str) -> str:
    return f"'{html.escape(text, quote=True)}'"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


PAGE = """<!doctype html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th, td {{ border-bottom: 1px solid #8886; padding: .25rem .6rem; text-align: left; vertical-align: top; }}
td {{ white-space: pre-wrap; }}
.numbers td:not(:first-child), .numbers th:not(:first-child) {{ text-align: right; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
figure {{ display: inline-block; margin: 1rem 1rem 0 0; }}
figcaption {{ color: #888; }}
img {{ max-width: 100%; background: #fff; }}
pre {{ overflow-x: auto; padding: .8rem; border: 1px solid #8886; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
