"""Dataclass <-> JSON, and overrides by dotted path.

An experiment is a value: frozen dataclasses all the way down. This module writes such a value as JSON, reads it back, and
applies ``path.to.field=value`` overrides. Nothing is guessed: an unknown key, a value of the wrong type or a choice that
does not exist is refused, with the nearest name offered.

Supported field types: bool, int, float, str, ``Literal``, ``X | None``, ``tuple[X, ...]``, dataclasses, and unions of
dataclasses (stored with a ``"kind"`` key that holds the class name).
"""

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from bert_jax.errors import BertJaxError
from bert_jax.files import read_json, write_json

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """The JSON form of a configuration value. Every dataclass carries its class name under ``kind``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | fields
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    return value


def from_json(kind: type[T], data: Any, where: str = "config") -> T:
    """Reads a value of type ``kind`` from its JSON form.

    Raises:
      BertJaxError: unknown key (the nearest one is named), wrong type, unknown choice. ``where`` names the place.
    """
    return _read(kind, data, where)


def override(value: T, assignments: typing.Sequence[str]) -> T:
    """Applies ``"optimizer.learning_rate=1e-3"``-like assignments to a dataclass and returns the new value.

    Values are read as JSON where they parse as JSON and as plain strings otherwise; tuple elements are reached by index
    (``task.objectives.0.rate=0.2``).
    """
    data = to_json(value)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise BertJaxError(f"--set {assignment}: expected path.to.field=value")
        try:
            new = json.loads(text)
        except json.JSONDecodeError:
            new = text
        node, keys = data, path.strip().split(".")
        for depth, key in enumerate(keys):
            here = ".".join(keys[: depth + 1])
            if isinstance(node, list):
                if not key.isdecimal() or int(key) >= len(node):
                    raise BertJaxError(f"--set {path}: {here} is not an index below {len(node)}")
                key = int(key)
            elif not isinstance(node, dict) or key not in node or key == "kind":
                names = [k for k in node if k != "kind"] if isinstance(node, dict) else []
                raise BertJaxError(f"--set {path}: there is no field {here!r}{_nearest(str(key), names)}")
            if depth == len(keys) - 1:
                node[key] = new
            else:
                node = node[key]
    return from_json(type(value), data)


def save(value: Any, path: Path | str) -> None:
    """Writes a configuration value as indented JSON; the file is replaced as a whole or not at all."""
    write_json(Path(path), to_json(value))


def load(kind: type[T], path: Path | str) -> T:
    """Reads what :func:`save` wrote."""
    return from_json(kind, read_json(Path(path)), str(path))


def differences(one: Any, other: Any, where: str = "") -> typing.Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: dotted path and both values, as in ("train.steps", 10, 20)."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(one.get(key), other.get(key), f"{where}.{key}".lstrip("."))
    elif one != other:
        yield where, one, other


def _nearest(name: str, names: typing.Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(names) or 'nothing: it is a value'}"


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, data, where)
    if origin is Literal:
        if data not in arguments:
            choices = ", ".join(map(str, arguments))
            raise BertJaxError(f"{where}: {data!r} is not one of {choices}")
        return data
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            several = typing.get_args(arguments[0])
            form = f" such as [{_form(several, data)}]" if several and all(map(dataclasses.is_dataclass, several)) else ""
            raise BertJaxError(f"{where}: expected a list{form}, got {data!r}")
        return tuple(_read(arguments[0], v, f"{where}.{i}") for i, v in enumerate(data))
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is int and isinstance(data, float) and data.is_integer():  # 1e6 is how people write a million
        return int(data)
    if not isinstance(data, kind) or (kind is not bool and isinstance(data, bool)):
        raise BertJaxError(f"{where}: expected {kind.__name__}, got {data!r}")
    return data


def _form(choices: typing.Sequence[Any], data: Any) -> str:
    """How a value of one of several dataclasses is written: the one that ``data`` seems to name, else the first."""
    names = [choice.__name__ for choice in choices]
    return json.dumps({"kind": [*difflib.get_close_matches(str(data), names, n=1, cutoff=0.5), *names][0]})


def _read_union(arguments: tuple, data: Any, where: str) -> Any:
    if data is None and type(None) in arguments:
        return None
    choices = [a for a in arguments if a is not type(None)]
    if len(choices) == 1:
        return _read(choices[0], data, where)
    by_name = {c.__name__: c for c in choices}
    if not isinstance(data, dict) or "kind" not in data:
        raise BertJaxError(
            f"{where}: expected an object such as {_form(choices, data)}, got {data!r}; kinds are {', '.join(by_name)}"
        )
    name = data["kind"]
    if not isinstance(name, str) or name not in by_name:
        raise BertJaxError(f"{where}: unknown kind {name!r}{_nearest(str(name), by_name)}")
    return _read(by_name[name], data, where)


def _read_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise BertJaxError(f"{where}: expected an object for {kind.__name__}, got {data!r}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key in data:
        if key != "kind" and key not in names:
            raise BertJaxError(f"{where}: unknown key {key!r} in {kind.__name__}{_nearest(key, names)}")
    if data.get("kind", kind.__name__) != kind.__name__:
        raise BertJaxError(f"{where}: expected {kind.__name__}, got {data['kind']}")
    values = {n: _read(hints[n], data[n], f"{where}.{n}") for n in names if n in data}
    try:
        return kind(**values)
    except TypeError as error:
        raise BertJaxError(f"{where}: {error}") from None
