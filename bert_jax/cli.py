"""The command line: one subcommand per verb, each thin. Nothing heavy is imported until a verb runs."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from bert_jax.errors import BertJaxError


def main(argv: list[str] | None = None) -> int:
    """Runs ``bert-jax``; returns the exit status: 0 done, 1 refused with one line on stderr, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="bert-jax: %(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # read when it is imported; what it gives up on, we say
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        arguments.run(arguments)
    except BertJaxError as error:
        print(f"bert-jax: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a file without permission: what the system says is clear enough
        where = f": {error.filename}" if error.filename else ""
        print(f"bert-jax: error: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bert-jax: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bert-jax", description="Pre-train BERT-family encoders in JAX, convert them, and hand them to PyTorch.",
        epilog="Start with: bert-jax demo. Each command explains itself: bert-jax COMMAND --help.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name, run, summary, description):
        sub = commands.add_parser(
            name, help=summary, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    sub = command("tokenizer", _tokenizer, "train a tokenizer from text", "Learns a vocabulary from text and saves it.")
    _add_text_options(sub)
    sub.add_argument("--out", required=True, help="folder to write; must not exist")
    sub.add_argument("--kind", choices=["wordpiece", "sentencepiece"], default="wordpiece",
                     help="wordpiece is BERT's; sentencepiece (unigram) is ALBERT's")
    sub.add_argument("--vocab-size", type=int, default=30000, help="pieces in the vocabulary, special ones included")
    sub.add_argument("--cased", action="store_true", help="keep upper case and accents")

    sub = command("prepare", _prepare, "turn text into a token store",
                  "Splits text into documents and sentences, tokenizes it on all cores and writes a token store. An "
                  "interrupted run leaves OUT.partial and goes on when called again with the same arguments.")
    _add_text_options(sub)
    sub.add_argument("--tokenizer", required=True, help="folder or file of a tokenizer (vocab.txt, tokenizer.json, *.model)")
    sub.add_argument("--out", required=True, help="folder of the store; must not exist")
    sub.add_argument("--sentences", choices=["punkt", "line"], default="punkt",
                     help="punkt finds sentence ends; line takes every line as one sentence")
    sub.add_argument("--heldout", type=float, default=0.01, help="share of documents kept for evaluation (0 to below 1)")
    sub.add_argument("--workers", type=int, default=None, help="processes; default: all cores")

    sub = command("pretrain", _pretrain, "pre-train an encoder, or go on with a run",
                  "Trains what a configuration file describes. Called again with the same --workdir it continues from the "
                  "last checkpoint; SIGTERM and Ctrl-C save first. The work directory receives checkpoints, "
                  "metrics.jsonl, curves.png and TensorBoard events.")
    sub.add_argument("--config", required=True, help="Python file with get_config() -> Experiment, see configs/")
    sub.add_argument("--data", required=True, help="token store made by bert-jax prepare")
    sub.add_argument("--workdir", required=True, help="folder for checkpoints and records")
    sub.add_argument("--init", metavar="CHECKPOINT", default=None,
                     help="start from the weights of this checkpoint (whatever convert reads) instead of from scratch")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments",
                     help="change a field of the configuration, as in --set train.steps=1000; may be repeated")

    sub = command("evaluate", _evaluate, "measure a checkpoint on held-out data",
                  "Losses and accuracies on the held-out documents of a token store, with the same pairs and masks each "
                  "time, and the accuracy of always guessing the most frequent piece. Prints JSON.")
    sub.add_argument("checkpoint", help="work directory, or workdir@step")
    sub.add_argument("--data", required=True, help="token store made by bert-jax prepare")
    sub.add_argument("--batches", type=int, default=None, help="held-out batches to use; default: all")
    sub.add_argument("--batch-size", type=int, default=64, help="sequences per batch")

    sub = command("fill-mask", _fill_mask, "guess the masked words of a sentence",
                  "Prints the most probable pieces for every [MASK] in the text.")
    sub.add_argument("checkpoint", help="whatever convert reads, with a masked-language-model head")
    sub.add_argument("text", help='for example "The capital of France is [MASK]."')
    sub.add_argument("--top", type=int, default=5, help="guesses per mask")

    sub = command("convert", _convert, "turn any checkpoint into any other form",
                  "Reads BERT, ALBERT, ELECTRA, DistilBERT, RoBERTa and XLM-RoBERTa from directories of Hugging Face and "
                  "sentence-transformers, the hub, Google's TensorFlow checkpoints and work directories; writes what "
                  "transformers or sentence-transformers load in PyTorch, ONNX, or our own form, which loads fastest. Values "
                  "are copied exactly. pretrain --init trains on from any of them.")
    sub.add_argument("--from", required=True, metavar="CHECKPOINT", dest="checkpoint",
                     help="work directory, workdir@step, directory, TensorFlow checkpoint, or hub id (org/name)")
    sub.add_argument("--to", required=True, metavar="FOLDER", dest="out", help="folder to write; must not exist or be empty")
    sub.add_argument("--format", choices=["hf", "sentence-transformers", "bert_jax", "onnx"], default="hf",
                     help="hf: transformers; sentence-transformers: with its modules; bert_jax: our own; onnx: hf and "
                          "onnx/model.onnx")
    sub.add_argument("--dtype", choices=["float32", "bf16", "bfloat16", "float16"], default=None,
                     help="of the weights that are written; default: as they come")
    sub.add_argument("--tokenizer", default=None, help="folder or file of the tokenizer; default: the one beside the weights")
    sub.add_argument("--allow-missing", action="store_true",
                     help="heads that the checkpoint promises but lacks begin untrained, instead of an error")

    sub = command("inspect", _inspect, "say what a checkpoint is",
                  "Prints family, sizes, heads, tokenizer and its hash, and which tensors would be left out or begin anew. "
                  "Reads no weights.")
    sub.add_argument("checkpoint", help="whatever convert reads")

    sub = command("export", _export, "write a Hugging Face directory",
                  "Writes model.safetensors, config.json and the tokenizer, which transformers loads in PyTorch. Short for "
                  "convert --format hf.")
    sub.add_argument("checkpoint", help="whatever convert reads")
    sub.add_argument("out", help="folder to write; must not exist or be empty")

    sub = command("demo", _demo, "everything at once, in minutes, without any data",
                  "Trains a tokenizer and a small BERT on the documentation of the installed Python packages, draws the "
                  "curves, fills three masks, exports, and compares with transformers where that is installed.")
    sub.add_argument("--workdir", default="runs/demo", help="folder for everything the demo makes")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments",
                     help="change a field of the demo's configuration")
    return parser


def _add_text_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("text", nargs="+", help="text files, globs, .gz, .jsonl, or tfds:NAME/CONFIG[:SPLIT]")
    sub.add_argument("--documents", default="blank", metavar="RULE",
                     help="where documents begin in text files: blank (line), file, line, formfeed, or prefix:STRING")
    sub.add_argument("--field", default="text", help="field of JSONL and TFDS records that holds the text")


def _tokenizer(arguments: argparse.Namespace) -> None:
    from bert_jax import tokenizers
    from bert_jax.data.sources import Corpus

    out = Path(arguments.out)
    if out.exists():
        raise BertJaxError(f"{out}: exists already: remove it or choose another folder")
    corpus = Corpus(arguments.text, documents=arguments.documents, field=arguments.field)
    tokenizer = tokenizers.train(arguments.kind, corpus, arguments.vocab_size, lowercase=not arguments.cased)
    tokenizer.save(out)
    print(f"{out}: {tokenizer.kind} tokenizer with {tokenizer.vocab_size} pieces, hash {tokenizer.hash}")


def _prepare(arguments: argparse.Namespace) -> None:
    from bert_jax import tokenizers
    from bert_jax.data.prepare import prepare

    manifest = prepare(
        arguments.text, arguments.out, tokenizers.load(arguments.tokenizer), documents=arguments.documents,
        sentences=arguments.sentences, heldout=arguments.heldout, workers=arguments.workers, field=arguments.field,
    )
    for name, split in manifest.splits.items():
        print(f"{name}: {split.documents:,} documents, {split.sentences:,} sentences, {split.tokens:,} tokens")


def _pretrain(arguments: argparse.Namespace) -> None:
    _start_jax()
    from bert_jax import config
    from bert_jax.training.pretrain import load_config, pretrain

    init = [f"task.init={json.dumps(arguments.init)}"] if arguments.init else []
    experiment = config.override(load_config(arguments.config), arguments.assignments + init)
    pretrain(experiment, arguments.data, arguments.workdir)


def _evaluate(arguments: argparse.Namespace) -> None:
    _start_jax()
    from bert_jax.training.pretrain import evaluate_checkpoint

    print(json.dumps(
        evaluate_checkpoint(arguments.checkpoint, arguments.data, arguments.batch_size, arguments.batches), indent=2
    ))


def _fill_mask(arguments: argparse.Namespace) -> None:
    _start_jax()
    import bert_jax
    from bert_jax.fill_mask import fill_mask

    model = bert_jax.load(arguments.checkpoint)
    for guesses in fill_mask(model.params, model.config, model.tokenizer, arguments.text, arguments.top):
        print("  ".join(f"{guess.piece} {guess.probability:.3f}" for guess in guesses))


def _convert(arguments: argparse.Namespace) -> None:
    _start_jax()
    import bert_jax

    model = bert_jax.load(arguments.checkpoint, tokenizer=arguments.tokenizer, allow_missing=arguments.allow_missing)
    dtype = {"bf16": "bfloat16"}.get(arguments.dtype, arguments.dtype)
    logging.getLogger("bert_jax").setLevel(logging.INFO)  # how exact an ONNX graph is
    bert_jax.save(model, arguments.out, format=arguments.format, dtype=dtype)
    print(f"{arguments.out}: written as {arguments.format}; bert-jax inspect {arguments.out} describes it")


def _inspect(arguments: argparse.Namespace) -> None:
    _start_jax()
    import bert_jax

    print(bert_jax.inspect(arguments.checkpoint))


def _export(arguments: argparse.Namespace) -> None:
    _start_jax()
    import bert_jax

    bert_jax.save(bert_jax.load(arguments.checkpoint), arguments.out)
    print(f"{arguments.out}: model.safetensors, config.json and the tokenizer; open it with transformers' from_pretrained")


def _demo(arguments: argparse.Namespace) -> None:
    _start_jax()
    from bert_jax.demo import demo

    demo(Path(arguments.workdir), arguments.assignments)


def _start_jax() -> None:
    """Compiled programs are kept between runs; JAX_COMPILATION_CACHE_DIR chooses where."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "bert_jax" / "xla"))


if __name__ == "__main__":
    sys.exit(main())
