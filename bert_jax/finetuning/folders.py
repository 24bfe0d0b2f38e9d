"""The folder of a fine-tuning: whose it is, which of its seeds are finished, and what gives way to another."""

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax import config as configuration
from bert_jax.convert.reading import flatten
from bert_jax.errors import BertJaxError
from bert_jax.files import read_json, write_json
from bert_jax.model import CHECKPOINTS, EXPERIMENT, EXPORTED, PLAN, Model
from bert_jax.reporting import table
from bert_jax.training.experiment import Experiment
from bert_jax.training.workdirs import trained

logger = logging.getLogger("bert_jax")

RESULT = "result.json"  # of a seed that is finished
_ONE, _SEVERAL = re.compile(r"seed-\d+"), re.compile(r"seeds(-\d+){2,}")  # folders of runs


def digest(model: Model) -> str:
    """Of the weights that seeds begin with: a folder may have others when the next ones are asked for."""
    found = hashlib.sha256()
    for name, array in flatten(model.params).items():
        found.update(name.encode())
        found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()


def check(workdir: Path, plan: dict[str, Any]) -> None:
    """Raises BertJaxError where ``workdir`` holds anything but this fine-tuning; one that trained nothing gives way."""
    if (workdir / PLAN).is_file():
        there = read_json(workdir / PLAN)
        runs = [path for path in workdir.iterdir() if _ONE.fullmatch(path.name) or _SEVERAL.fullmatch(path.name)]
        left = (workdir / EXPORTED).exists() or (workdir / table.SCORES).exists() or any(map(trained, runs))
        if there != plan and not left:
            logger.warning("the fine-tuning that was begun in %s trained nothing, this one takes its place", workdir)
            for path in runs:
                shutil.rmtree(path)
            return
        # Through a value, so that a field which an earlier version had not counts as its default.
        where = f"{workdir / PLAN} is not of this version, choose another --workdir: experiment"
        begun = configuration.from_json(Experiment, there.get("experiment"), where)
        for path, before, now in configuration.differences(configuration.to_json(begun), plan["experiment"]):
            raise BertJaxError(
                f"{workdir} holds another fine-tuning: {path} was {before}, is now {now}: choose another --workdir"
            )
        for name, now in plan["identity"].items():
            if there.get("identity", {}).get(name, now) != now:  # earlier versions kept less
                raise BertJaxError(
                    f"{workdir}: the {name} is not what it was when this fine-tuning began: use the same again, or choose "
                    "another --workdir"
                )
    elif (workdir / EXPERIMENT).exists() or (workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir()))):
        raise BertJaxError(f"{workdir} exists and is no work directory of finetune: choose another --workdir")


def begin(workdir: Path, plan: dict[str, Any]) -> list[str]:
    """Writes the plan. Returns which of its file and of ``workdir`` are new, in the order in which they can be taken away."""
    new = [str(path) for path in (workdir / PLAN, workdir) if not path.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / PLAN, plan)
    return new


def finished_seeds(workdir: Path) -> dict[int, dict[str, Any]]:
    """The results of the seeds of a fine-tuning that are finished."""
    folders = {path.parent.name.removeprefix("seed-"): path for path in workdir.glob(f"seed-*/{RESULT}")}
    return {int(seed): read_json(path) for seed, path in folders.items() if seed.isdecimal()}


@contextlib.contextmanager
def leaving_no_refusal(workdir: Path, new: Sequence[str]) -> Iterator[None]:
    """What is refused before it has trained takes away what is ``new``: the plan, and ``workdir`` where it was absent."""
    try:
        yield
    except BertJaxError:
        if new and [path.name for path in workdir.iterdir()] == [PLAN]:
            for path in map(Path, new):
                path.rmdir() if path == workdir else path.unlink()
        raise


def groups(numbers: Sequence[int], at_once: int, workdir: Path) -> list[list[int]]:
    """The seeds that train together: those that have begun so, and then ``at_once`` at a time of those that have not begun."""
    for path in workdir.glob(".seeds-*.over"):
        shutil.rmtree(path)
    joint = sorted(path for path in workdir.iterdir() if _SEVERAL.fullmatch(path.name))
    going_on = [path for path in joint if trained(path) and (path / CHECKPOINTS).is_dir()]
    for path in joint:  # what trained nothing (perhaps the memory did not suffice), or is left of one that has ended
        if path not in going_on and not any(map(trained, path.glob("seed-*"))):
            shutil.rmtree(path)
    begun = [[int(seed) for seed in path.name.split("-")[1:]] for path in going_on]
    taken = {seed for group in begun for seed in group}
    waiting = [seed for seed in numbers if seed not in taken and not (workdir / f"seed-{seed}").exists()]
    new = [waiting[first : first + at_once] for first in range(0, len(waiting), at_once)] if at_once > 1 else []
    return [*begun, *(group for group in new if len(group) > 1)]
