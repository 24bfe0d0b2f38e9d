"""The command line: one subcommand per verb, each thin. Nothing heavy is imported until a verb runs."""

import argparse
import dataclasses
import io
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from bert_jax import cli_cluster, cli_finetune
from bert_jax.errors import BertJaxError, exit_status, out_of_memory

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer


def main(argv: list[str] | None = None) -> int:
    """Runs ``bert-jax``; returns the exit status: 0 done, 1 refused with one line on stderr, 2 wrong usage; 75 stopped early
    with all saved, so that the same command continues; 70 and 74 failed, as devices, networks and disks do: the same command
    may continue."""
    arguments = _parser().parse_args(argv)
    arguments.command_line = argv
    logging.basicConfig(format="bert-jax: %(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    for noisy in ("jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # that an accelerator is there, and is not used
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs errors there, with tracebacks, that we say in one line
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # read when it is imported; what it gives up on, we say
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale: no piece of a vocabulary may end the process
            stream.reconfigure(errors="backslashreplace")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        if arguments.jax:
            _start_jax()
        return arguments.run(arguments) or 0
    except BertJaxError as error:
        print(f"bert-jax: error: {error}", file=sys.stderr)
        return exit_status(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a file without permission: what the system says is clear enough
        where = f": {error.filename}" if error.filename else ""
        print(f"bert-jax: error: {error.strerror or error}{where}", file=sys.stderr)
        return exit_status(error)
    except KeyboardInterrupt:
        print("bert-jax: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if line := out_of_memory(error):
            print(f"bert-jax: error: {line}", file=sys.stderr)
            return 1
        traceback.print_exc()
        return exit_status(error)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default where there is one, and where the text of the option does not say it better."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == [] or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bert-jax",
        description="Pre-train and fine-tune BERT-family encoders in JAX, convert them, and hand them to PyTorch.",
        epilog="Start with: bert-jax demo. Each command explains itself: bert-jax COMMAND --help.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name, run, summary, description, jax=True):
        sub = commands.add_parser(name, help=summary, description=description, formatter_class=_Help)
        sub.set_defaults(run=run, jax=jax)
        return sub

    sub = command("tokenizer", _tokenizer, "train a tokenizer from text", "Learns a vocabulary from text and saves it.",
                  jax=False)
    _add_text_options(sub)
    sub.add_argument("--out", required=True, help="folder to write; must not exist")
    sub.add_argument("--kind", choices=["wordpiece", "sentencepiece"], default="wordpiece",
                     help="wordpiece is BERT's; sentencepiece (unigram) is ALBERT's")
    sub.add_argument("--vocab-size", type=int, default=30000, help="pieces in the vocabulary, special ones included")
    sub.add_argument("--cased", action="store_true", help="keep upper case and accents, which most languages but English want")

    sub = command("prepare", _prepare, "turn text into a token store",
                  "Splits text into documents and sentences, tokenizes it on all cores and writes a token store. An "
                  "interrupted run leaves OUT.partial and goes on when called again with the same arguments.", jax=False)
    _add_text_options(sub)
    sub.add_argument("--tokenizer", required=True, help="folder or file of a tokenizer (vocab.txt, tokenizer.json, *.model)")
    sub.add_argument("--out", required=True, help="folder of the store; must not exist")
    sub.add_argument("--sentences", choices=["punkt", "line"], default=None,
                     help="punkt (if nothing is said) finds sentence ends; line takes every line as one sentence")
    sub.add_argument("--words", choices=["tokenizer", "whitespace"], default="tokenizer",
                     help="where words begin: as the tokenizer's pieces say, or only after blanks, for Chinese that was "
                          "segmented into words; pieces are the same")
    sub.add_argument("--case", action="store_true",
                     help="also store which words began with a capital, to be predicted where the tokenizer drops it")
    sub.add_argument("--parallel", action="store_true",
                     help="sources are translations, as in en=a.txt de=b.txt: document by document, line by line")
    sub.add_argument("--heldout", type=float, default=0.01, help="share of documents kept for evaluation (0 to below 1)")
    sub.add_argument("--shard-tokens", type=int, default=1 << 24, help="tokens in one file of the store")
    sub.add_argument("--workers", type=int, default=None, help="processes; default: all cores")
    sub.add_argument("--runner", choices=["local", "beam"], default="local",
                     help="beam writes the same store through Apache Beam, on a cluster or here, see docs/preparing.md")
    sub.add_argument("--beam-options", nargs=argparse.REMAINDER, default=[], metavar="...",
                     help="everything after it is Beam's, as in --beam-options --runner=DataflowRunner --project=NAME")

    sub = command("annotate", _annotate, "mark phrases and names in a token store",
                  "Adds to a finished token store which words belong together, so that they can be masked together: phrases "
                  "that are mined from its own text by pointwise mutual information, or names from lists. Done again, it "
                  "replaces what was there. Runs that use neither go on as before.", jax=False)
    sub.add_argument("store", help="token store made by bert-jax prepare")
    sub.add_argument("--phrases", action="store_true",
                     help="n-grams of 2 to 5 words with the highest PMI in the train split (PMI-Masking); STORE/phrases/*/"
                          "phrases.tsv lists them")
    sub.add_argument("--minimum", type=int, default=11, metavar="N", help="how often an n-gram must occur to become a phrase")
    sub.add_argument("--top", type=float, default=0.25, metavar="SHARE", help="share of those n-grams that become phrases")
    sub.add_argument("--gazetteer", nargs="+", default=[], metavar="FILE",
                     help="names, one a line, or the subjects and objects of K-BERT's .spo tables")

    sub = command("pretrain", _pretrain, "pre-train an encoder, or go on with a run",
                  "Trains what a configuration file describes. Called again with the same --workdir it continues from the "
                  "last checkpoint; SIGTERM and Ctrl-C save first, and end it with status 75. The work directory receives "
                  "checkpoints, metrics.jsonl, curves.png and TensorBoard events.")
    sub.add_argument("--config", required=True, help="Python file with get_config() -> Experiment, see configs/")
    sub.add_argument("--data", required=True, help="token store made by bert-jax prepare")
    sub.add_argument("--workdir", required=True, help="folder for checkpoints and records")
    sub.add_argument("--init", metavar="CHECKPOINT", default=None,
                     help="start from the weights of this checkpoint (whatever convert reads) instead of from scratch")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments",
                     help="change a field of the configuration, as in --set train.steps=1000; may be repeated")
    cli_cluster.add(sub)
    sub.add_argument("--profiler-port", type=int, metavar="PORT", help="let a profiler (xprof, TensorBoard) connect here")

    sub = command("plan", _plan, "say what a run needs on a TPU slice that you do not have",
                  "Compiles the training step of a configuration for the given devices, with XLA's own compiler and without "
                  "the devices or any data, and prints memory, exchanges between devices, and what the published peaks allow. "
                  "Exit status 0 where it fits, 1 where it does not.", jax=False)
    sub.add_argument("--config", required=True, help="Python file with get_config() -> Experiment, see configs/")
    sub.add_argument("--topology", required=True,
                     help="v5e:4x4 or v5e-16 (v2, v3, v4, v5e, v5p, v6e; needs the plan extra), v5e:4x4*2 for two slices, "
                          "cpu:8, or gpu for the GPUs of this machine")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments",
                     help="change a field of the configuration, as in --set mesh.fsdp=4; may be repeated")
    sub.add_argument("--fit", action="store_true",
                     help="find the largest batch a device can hold for each remat policy instead, cheapest policy first")
    sub.add_argument("--json", action="store_true", help="print JSON")

    cli_finetune.add(command)

    sub = command("evaluate", _evaluate, "measure a checkpoint on held-out data",
                  "Of a run of pretrain losses and accuracies on the held-out documents of a token store, with the same pairs "
                  "and masks each time, and for each objective with classes what always giving the most frequent one would "
                  "reach; of one of finetune the scores of all its seeds on labelled data, such as a test set. Prints JSON.")
    sub.add_argument("checkpoint", help="work directory, of finetune also that of a seed, or workdir@step of pretrain")
    sub.add_argument("--data", required=True,
                     help="token store made by bert-jax prepare; of a fine-tuning a file in the form of what it was trained on "
                          "(a folder of RACE's passages), or NAME:SPLIT of a data set that TFDS has on disk, such as "
                          "glue/mnli:validation_mismatched")
    sub.add_argument("--texts", nargs="+", metavar="COLUMN", default=[],
                     help="of such a file: its columns, as finetune takes them; default: those of the data it was trained on")
    sub.add_argument("--label", metavar="COLUMN", default=None, help="the same of the label")
    cli_finetune.add_threshold(sub)
    sub.add_argument("--batches", type=int, default=None, help="of a store: held-out batches to use; default: all")
    sub.add_argument("--batch-size", type=int, default=64, help="sequences per batch")

    sub = command("fill-mask", _fill_mask, "guess the masked words of a sentence",
                  "Prints the most probable pieces for every [MASK] in the text (<mask> for RoBERTa, XLM-R and XLNet, as their "
                  "tokenizers call it).")
    sub.add_argument("checkpoint", help="whatever convert reads, with a masked-language-model head: of an ELECTRA "
                                        "run the generator, runs/x#generator")
    sub.add_argument("text", help='for example "The capital of France is [MASK]."')
    sub.add_argument("--top", type=int, default=5, help="guesses per mask")

    sub = command("convert", _convert, "turn any checkpoint into any other form",
                  "Reads BERT, ALBERT, ELECTRA, DistilBERT, RoBERTa, XLM-RoBERTa and XLNet from directories of Hugging Face "
                  "and sentence-transformers, the hub, Google's TensorFlow checkpoints and work directories; writes what "
                  "transformers or sentence-transformers load in PyTorch, ONNX, or our own form, which loads fastest. Values "
                  "are copied exactly. pretrain --init trains on from any of them.")
    sub.add_argument("--from", required=True, metavar="CHECKPOINT", dest="checkpoint",
                     help="work directory of pretrain or finetune, workdir@step, directory, TensorFlow checkpoint, or hub id "
                          "(org/name); #generator behind a work directory or TensorFlow checkpoint of ELECTRA takes its "
                          "generator instead of the discriminator")
    sub.add_argument("--to", required=True, metavar="FOLDER", dest="out", help="folder to write; must not exist or be empty")
    sub.add_argument("--format", choices=["hf", "sentence-transformers", "bert_jax", "onnx"], default="hf",
                     help="hf: transformers; sentence-transformers: with its modules; bert_jax: our own; onnx: hf and "
                          "onnx/model.onnx")
    sub.add_argument("--dtype", choices=["float32", "bf16", "bfloat16", "float16"], default=None,
                     help="of the weights that are written; default: as they come, in the forms bert_jax and onnx float32")
    sub.add_argument("--tokenizer", default=None, help="folder or file of the tokenizer; default: the one beside the weights")
    sub.add_argument("--allow-missing", action="store_true",
                     help="heads that the checkpoint promises but lacks begin untrained, instead of an error")

    sub = command("inspect", _inspect, "say what a checkpoint is",
                  "Prints family, sizes, heads, tokenizer and its hash, and which tensors would be left out or begin anew. "
                  "Reads no weights (of a hub id they are fetched all the same).")
    sub.add_argument("checkpoint", help="whatever convert reads")

    sub = command("export", _export, "write a Hugging Face directory",
                  "Writes model.safetensors, config.json and the tokenizer, which transformers loads in PyTorch. Short for "
                  "convert --format hf. Of an ELECTRA run, runs/x is the discriminator (ElectraForPreTraining) and "
                  "'runs/x#generator' the generator (ElectraForMaskedLM).")
    sub.add_argument("checkpoint", help="whatever convert reads, such as runs/x or runs/x#generator")
    sub.add_argument("out", help="folder to write; must not exist or be empty")

    sub = command("demo", _demo, "everything at once, in minutes, without any data",
                  "Trains a tokenizer and a small BERT on the documentation of the installed Python packages, draws the "
                  "curves, fills three masks, exports, and compares with transformers where that is installed.")
    sub.add_argument("--workdir", default="runs/demo", help="folder for everything the demo makes")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments",
                     help="change a field of the demo's configuration")
    return parser


def _add_text_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("text", nargs="+", help="text files, globs, .gz, .jsonl, or tfds:NAME/CONFIG[:SPLIT]; de=FILE names "
                                             "the language of its documents")
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
    from bert_jax.data.stages import Recipe

    if arguments.parallel and arguments.sentences == "punkt":
        raise BertJaxError("--parallel pairs sentences line by line: leave out --sentences punkt")
    recipe = Recipe(
        arguments.documents, arguments.sentences or "punkt", arguments.heldout, arguments.field, arguments.shard_tokens,
        arguments.case, arguments.words, arguments.parallel,
    )
    if arguments.runner == "beam":
        if arguments.workers is not None:
            raise BertJaxError("--workers is the local runner's: tell Beam, as in --beam-options --direct_num_workers=2")
        logging.disable(logging.WARNING)  # importing Beam complains of Google's libraries, which few need
        try:
            from bert_jax.data.beam import prepare_with_beam
        finally:
            logging.disable(logging.NOTSET)
        manifest = prepare_with_beam(
            arguments.text, arguments.out, tokenizers.load(arguments.tokenizer), recipe, beam_options=arguments.beam_options
        )
    else:
        if arguments.beam_options:
            raise BertJaxError("--beam-options goes with --runner beam")
        manifest = prepare(
            arguments.text, arguments.out, tokenizers.load(arguments.tokenizer), workers=arguments.workers,
            **dataclasses.asdict(recipe),
        )
    for name, split in manifest.splits.items():
        print(f"{name}: {split.documents:,} documents, {split.sentences:,} sentences, {split.tokens:,} tokens")


def _annotate(arguments: argparse.Namespace) -> None:
    from bert_jax.data.annotate import annotate_entities, annotate_phrases

    if not (arguments.phrases or arguments.gazetteer):
        raise BertJaxError("nothing to annotate: give --phrases, --gazetteer FILE, or both")
    if arguments.phrases:
        summary = annotate_phrases(arguments.store, minimum=arguments.minimum, top=arguments.top)
        for text, count, score in summary.best:
            print(f"  {text}  {count:,} times, PMI {score:.2f}")
        print(summary)
    if arguments.gazetteer:
        print(annotate_entities(arguments.store, arguments.gazetteer))


def _pretrain(arguments: argparse.Namespace) -> int | None:
    import jax

    from bert_jax import config
    from bert_jax.parallel.cluster import TEMPORARY
    from bert_jax.training.pretrain import load_config, pretrain

    init = [f"task.init={json.dumps(arguments.init)}"] if arguments.init else []
    with cli_cluster.joined(arguments) as cluster:
        experiment = config.override(load_config(arguments.config), arguments.assignments + init)
        if arguments.profiler_port is not None:
            jax.profiler.start_server(arguments.profiler_port)
        result = pretrain(experiment, arguments.data, arguments.workdir, cluster)
    return None if result.finished else TEMPORARY


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.topology != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # also on a TPU machine: nothing is run, and a job may be running there
    from rich.console import Console

    from bert_jax import config
    from bert_jax.planning.chips import target
    from bert_jax.planning.plan import HEADER, describe, fit, plan, row
    from bert_jax.training.pretrain import load_config

    experiment = config.override(load_config(arguments.config), arguments.assignments)
    devices = target(arguments.topology)
    with Console(stderr=True).status("compiling") as status:
        if arguments.fit:
            status.console.print(HEADER, highlight=False)  # as it is found: an interruption must not lose an hour's rows
            found = fit(experiment, devices, report=lambda line: status.update(f"compiling: {line}"),
                        found=lambda one: status.console.print(row(one), highlight=False, soft_wrap=True))
        else:
            found = plan(experiment, devices)
    if not arguments.fit:
        print(json.dumps(found.to_json(), indent=2) if arguments.json else found)
        return 0 if found.fits else 1
    print(json.dumps([one.to_json() for one in found], indent=2) if arguments.json else describe(found))
    return 0 if any(one.per_device for one in found) else 1


def _evaluate(arguments: argparse.Namespace) -> None:
    from bert_jax.data.store import MANIFEST
    from bert_jax.evaluating import is_finetuning

    store = Path(arguments.data)
    if store.is_file() or is_finetuning(arguments.checkpoint) and not (store / MANIFEST).is_file():
        if arguments.batches is not None:
            raise BertJaxError("--batches goes with a token store: of labelled data all is read")
        cli_finetune.evaluate(arguments)
        return
    if arguments.texts or arguments.label is not None or arguments.null_threshold is not None:
        raise BertJaxError(f"--texts, --label and --null-threshold go with a file: {arguments.data} is none")
    from bert_jax.training.pretrain import evaluate_checkpoint

    print(json.dumps(
        evaluate_checkpoint(arguments.checkpoint, arguments.data, arguments.batch_size, arguments.batches), indent=2
    ))


def _fill_mask(arguments: argparse.Namespace) -> None:
    import bert_jax
    from bert_jax.fill_mask import fill_mask

    model = bert_jax.load(arguments.checkpoint)
    for guesses in fill_mask(model.params, model.config, model.tokenizer, arguments.text, arguments.top):
        print("  ".join(f"{_shown(model.tokenizer, guess.piece)} {guess.probability:.3f}" for guess in guesses))


def _shown(tokenizer: "Tokenizer", piece: str) -> str:
    """A piece as text, without the mark of a blank; as it stands where it is none, such as a part of a character."""
    try:
        text = tokenizer.decode([tokenizer.piece_id(piece)]).strip()
    except BertJaxError:
        return piece
    return piece if not text or "\ufffd" in text else text


def _convert(arguments: argparse.Namespace) -> None:
    import bert_jax

    model = bert_jax.load(arguments.checkpoint, tokenizer=arguments.tokenizer, allow_missing=arguments.allow_missing)
    logging.getLogger("bert_jax").setLevel(logging.INFO)  # how exact an ONNX graph is
    bert_jax.save(model, arguments.out, format=arguments.format, dtype=arguments.dtype)
    print(f"{arguments.out}: written as {arguments.format}; bert-jax inspect {arguments.out} describes it")


def _inspect(arguments: argparse.Namespace) -> None:
    import bert_jax

    print(bert_jax.inspect(arguments.checkpoint))


def _export(arguments: argparse.Namespace) -> None:
    import bert_jax

    bert_jax.save(bert_jax.load(arguments.checkpoint), arguments.out)
    print(f"{arguments.out}: model.safetensors, config.json and the tokenizer; open it with transformers' from_pretrained")


def _demo(arguments: argparse.Namespace) -> None:
    from bert_jax.demo import demo

    demo(Path(arguments.workdir), arguments.assignments)


def _start_jax() -> None:
    """Before a verb that computes: without a word about chips that are not there, and with programs kept."""
    from importlib.util import find_spec

    if find_spec("libtpu") and not any(next(Path("/dev").glob(p), None) for p in ("accel*", "vfio/*", "nvidia*")):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu is there for plan; looking for its chips prints a page of errors
    from bert_jax.compilation import keep_programs

    keep_programs()


if __name__ == "__main__":
    sys.exit(main())
