"""The verbs of fine-tuning on the command line: what ``bert-jax finetune`` and ``predict`` take, and what they call."""

import argparse
import json
import signal
import sys

from bert_jax import cli_cluster
from bert_jax.errors import BertJaxError, each_warning_once

_OWN = ("texts", "label", "heldout", "kind", "epochs")  # options that go with --data


def add(command) -> None:
    """Adds both; ``command(name, run, summary, description)`` makes a parser."""
    sub = command("finetune", _finetune, "fine-tune a checkpoint over seeds, with a report",
                  "Trains what a configuration describes, or a file of your own (--data) by the published recipe, once for "
                  "every seed. Leaves scores with mean and deviation, predictions, pictures, report.html, "
                  "README.md (a model card) and model/, which transformers opens and bert-jax predict reads. Called again it "
                  "continues; SIGTERM and Ctrl-C save first, and end it with status 75.")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="Python file with get_config() -> Experiment, see configs/finetune/")
    what.add_argument("--data", metavar="FILE",
                      help="labelled texts: *.tsv, *.csv or *.jsonl, also with .gz; *.json in SQuAD's form; words with tags: "
                           "*.conllu, *.iob2, and with --kind tagging any file with a word a line, or *.jsonl with lists")
    sub.add_argument("--checkpoint", help="what to start from, whatever convert reads; default: task.init of the configuration")
    sub.add_argument("--workdir", required=True, help="folder for all that it makes")
    sub.add_argument("--seeds", type=int, default=None, help="runs that differ in their seed alone; default: 5 with --config, "
                                                             "1 with --data")
    sub.add_argument("--at-once", type=int, default=1, metavar="N",
                     help="seeds that train as one program: with a small model on a large GPU or TPU N take little longer than "
                          "one, and N times its memory; default: 1")
    sub.add_argument("--export", choices=["first", "best"], default="first",
                     help="the seed whose model is written; the best by the held-out data looks better than it is")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments",
                     help="change a field of the configuration, as in --set optimizer.learning_rate=3e-5; may be repeated")
    sub.add_argument("--texts", nargs="+", metavar="COLUMN",
                     help="with --data: the column of the text, the two of a pair, or those of a first text and its choices; "
                          "of words with tags the words (default: column 0 of a file with a word a line, words in *.jsonl)")
    sub.add_argument("--label", metavar="COLUMN",
                     help="with --data: the column of the label: of a class, a value, the right choice (its number from 0, or "
                          "its letter), or the tags (default: the last column, tags in *.jsonl)")
    sub.add_argument("--heldout", metavar="FILE",
                     help="with --data: what to measure on, in the same form; default: a tenth of the data")
    sub.add_argument("--kind", choices=["classification", "regression", "tagging", "choice", "question-answering"],
                     default=None,
                     help="with --data; default: by the name of the file, choice where there are more than two texts, "
                          "regression where labels are numbers with a fraction, else classification")
    sub.add_argument("--epochs", type=float, default=None,
                     help="with --data: passes over it; default: 3, of small data what 200 updates take, at most 20")

    cli_cluster.add(sub)

    sub = command("predict", _predict, "answer about new texts with a fine-tuned model",
                  "Classes, values, tags, answers or choices for every row of a file, in its order, with memory that does not "
                  "grow. What is written appears whole or not at all.")
    sub.add_argument("model",
                     help="work directory of finetune, or whatever convert reads that has a classifier, tagger, span or choice")
    sub.add_argument("--input", required=True, metavar="FILE",
                     help="*.tsv, *.csv, *.jsonl (also with .gz), else a text a line; - is standard input; of questions about "
                          "contexts also *.json in SQuAD's form")
    sub.add_argument("--format", choices=["tsv", "csv", "jsonl", "lines"], default=None,
                     help="of the input; default: by its name")
    sub.add_argument("--texts", nargs="+", metavar="COLUMN", default=[],
                     help="columns of the text, of both of a pair, of question and context, of first text and choices; "
                          "default: those that it was trained on, or the only one")
    sub.add_argument("--out", metavar="FILE", default=None,
                     help="*.tsv or *.jsonl, must not exist; of SQuAD's form also *.json, {id: text} for its official scripts; "
                          "default: TSV on standard output")
    add_threshold(sub)
    sub.add_argument("--batch-size", type=int, default=64,
                     help="texts that a device computes at once, or four times the rows that short ones share")


def add_threshold(sub) -> None:
    sub.add_argument("--null-threshold", type=float, default=None, metavar="T",
                     help="of questions about contexts: there is no answer where the score of the null exceeds that of the "
                          "best span by more, such as the best_f1_threshold of an evaluation; default: task.null_threshold of "
                          "the configuration it was trained by")


def _finetune(arguments: argparse.Namespace) -> int | None:
    if arguments.data is None:
        if given := [name for name in _OWN if getattr(arguments, name) is not None]:
            raise BertJaxError(f"--{given[0]} goes with --data; a configuration says it itself (change it with --set)")
    elif arguments.checkpoint is None:
        raise BertJaxError("--data needs --checkpoint as well")
    with cli_cluster.joined(arguments) as cluster:
        return _finetune_in(cluster, arguments)


@each_warning_once()
def _finetune_in(cluster, arguments: argparse.Namespace) -> int | None:
    from rich.console import Console

    from bert_jax.finetuning import CARD, EXPORTED, PAGE, check_assignments, finetune, fit
    from bert_jax.model import load
    from bert_jax.parallel.cluster import TEMPORARY
    from bert_jax.reporting import table
    from bert_jax.tasks.tables import Table
    from bert_jax.training.pretrain import load_config
    from bert_jax.training.recipe import described, own_data, paths_of, recipe

    if arguments.data is None:
        experiment, model = fit(load_config(arguments.config), arguments.checkpoint, arguments.assignments)
    else:
        check_assignments(arguments.assignments, arguments.checkpoint)
        if arguments.epochs is not None and "train.steps" in paths_of(arguments.assignments):
            raise BertJaxError("--epochs and --set train.steps both say how long to train: leave one out")
        files = (arguments.data, arguments.heldout)
        sources = [path and own_data(path, arguments.texts or (), arguments.label, arguments.kind) for path in files]
        for given in filter(None, sources):
            given.read()  # what is wrong with it is said before a large checkpoint is loaded
        model = load(arguments.checkpoint)
        kind = arguments.kind if isinstance(sources[0], Table) else None
        experiment = recipe(
            model, arguments.checkpoint, *sources, kind=kind, epochs=arguments.epochs, assignments=arguments.assignments
        )
        console = Console(stderr=True, soft_wrap=True, quiet=not cluster.first)
        console.print(described(experiment), highlight=False, markup=False)
    seeds = (5 if arguments.data is None else 1) if arguments.seeds is None else arguments.seeds
    command = ["bert-jax", *(arguments.command_line or sys.argv[1:])]
    done = finetune(
        experiment, arguments.workdir, seeds=seeds, at_once=arguments.at_once, model=model, export=arguments.export,
        command=command, cluster=cluster,
    )
    if not done.finished:
        return TEMPORARY
    if cluster.first:
        table.show(done.scores, Console())
        print(f"{arguments.workdir}: {PAGE}, {CARD}, {EXPORTED}/; bert-jax predict {arguments.workdir} --input FILE")
    return None


def evaluate(arguments: argparse.Namespace) -> None:
    """``bert-jax evaluate`` of a fine-tuning: the table on stderr, JSON on stdout."""
    from rich.console import Console

    import bert_jax
    from bert_jax.reporting import table

    scores = bert_jax.evaluate(
        arguments.checkpoint, arguments.data, arguments.texts, arguments.label, batch_size=arguments.batch_size,
        null_threshold=arguments.null_threshold,
    )
    table.show(scores, Console(stderr=True))
    print(json.dumps(table.to_json(scores), indent=2))


def _predict(arguments: argparse.Namespace) -> None:
    from bert_jax.predicting import predict_file

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is half-written goes
    try:
        count = predict_file(
            arguments.model, arguments.input, arguments.out, columns=tuple(arguments.texts), form=arguments.format,
            batch_size=arguments.batch_size, null_threshold=arguments.null_threshold,
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    if arguments.out is not None:
        print(f"{arguments.out}: {count:,} rows")
