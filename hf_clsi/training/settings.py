"""Plain data (a YAML or JSON file, `--set name=value`) become settings, and settings such a file again.

Settings are frozen dataclasses whose annotations say what may stand where. What they do not know is refused
with the nearest name that they do; a value of another type is refused with the type that is expected. YAML is
read as YAML 1.2 does it: `5e-4` is a number, and `no` is a word (the code of Norwegian), not "false".
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")

#: Metadata of a field that holds a dict whose keys are open: a function of the dict that returns the names it
#: may have (None: any).
KEYS = "keys"


def from_plain(kind: type[T], data: Any, name: str = "") -> T:
    """Settings of a type from plain data, for example those of a file; nested settings too.

    Args:
        kind: a dataclass.
        data: a mapping of its fields; those that have defaults may be left out.
        name: where the data stand, for messages.

    Raises:
        ValueError: an unknown name (the message has the nearest known one), one that is missing, a value of
            another type, or a value that the settings themselves refuse.

    >>> from .recipes import OptimizerSettings
    >>> from_plain(OptimizerSettings, {"learning_rate": 1, "betas": [0.9, 0.95]}).betas
    (0.9, 0.95)
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{_the(name)} must be a group of settings, got {_shown(data)}.")
    known = {each.name: each for each in fields(kind)}
    for key in data:
        if key not in known:
            raise ValueError(_unknown(_join(name, key), key, known))
    hints = _hints(kind)
    values = {}
    for key, entry in known.items():
        if key in data:
            values[key] = _as_type(data[key], hints[key], _join(name, key))
            _check_keys(entry, values[key], _join(name, key))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"setting '{_join(name, key)}' is missing.")
    return kind(**values)


def with_changes(settings: T, changes: Mapping[str, Any]) -> T:
    """A copy of settings with some values replaced.

    Args:
        changes: dotted names and their new values. An entry of a tuple is named by its own `name`, or by its
            place: `{"optimizer.learning_rate": 1e-3, "stages.interleaved.switching.every": 2}`. A whole
            number may be written as a float (4e5).

    Raises:
        ValueError: no such setting (the message has the nearest name), or a value of another type.
    """
    for path, value in changes.items():
        settings = _changed(settings, path.split("."), value, path)
    return settings


def read_file(path: str | Path) -> Any:
    """What a YAML (.yaml, .yml) or JSON (.json) file holds.

    Raises:
        ValueError: another ending, a file that is no YAML or JSON, or a name that is given twice.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"settings are read from .yaml, .yml and .json files, got {path}.")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_unique_pairs)
        return yaml.load(text, _Loader)  # a SafeLoader: plain data only
    except (yaml.YAMLError, json.JSONDecodeError, _GivenTwice) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def to_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that `read_file` reads back equal; tuples become lists."""
    plain = json.loads(json.dumps(data))
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


# -- types ---------------------------------------------------------------------------------------------------


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


class _OtherType(Exception):
    """A value that cannot be read as the type that is expected."""


def _as_type(value: Any, hint: Any, name: str) -> Any:
    try:
        return _converted(value, hint, name)
    except _OtherType:
        raise ValueError(f"setting '{name}' must be {_described(hint)}, got {_shown(value)}.") from None


def _converted(value: Any, hint: Any, name: str) -> Any:
    """The value in the type of the annotation; `_OtherType` where that cannot be."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return value if isinstance(value, hint) else from_plain(hint, value, name)
    if origin in (typing.Union, types.UnionType):
        for kind in inner:
            try:
                return _converted(value, kind, name)
            except _OtherType:
                continue
        raise _OtherType
    if hint is types.NoneType:
        if value is None:
            return None
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
            if len(kinds) == len(value):
                return tuple(
                    _as_type(each, kind, f"{name}.{index}")
                    for index, (each, kind) in enumerate(zip(value, kinds, strict=True))
                )
    elif origin is dict or hint is dict:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            kind = inner[1] if inner else Any
            return {key: _as_type(each, kind, f"{name}.{key}") for key, each in value.items()}
    elif hint is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif hint is int:
        if type(value) is int or (type(value) is float and value.is_integer()):  # 4e5
            return int(value)
    elif type(value) is hint:
        return value
    raise _OtherType


def _described(hint: Any) -> str:
    """The type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(kind) for kind in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"a list, each entry {_described(inner[0])}"
        return f"a list of {len(inner)}"
    if origin is dict or hint is dict:
        return "a group of names and values"
    if is_dataclass(hint):
        return "a group of settings"
    words = {
        float: "a finite number", int: "a whole number", bool: "true or false", str: "a word",
        types.NoneType: "null",
    }  # fmt: skip
    return words.get(hint, str(hint))


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


# -- names ---------------------------------------------------------------------------------------------------


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no known name is near."""
    close = get_close_matches(str(word), list(known), 1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _unknown(whole: str, key: Any, known: Iterable[str], present: Iterable[str] = ()) -> str:
    """The message; a near name among those that are `present` is likelier meant than any other."""
    known = sorted(known) if isinstance(known, (set, frozenset)) else list(known)
    hint = nearest(key, present) or nearest(key, known)
    return f"unknown setting '{whole}': '{key}' is not one of {', '.join(known)}.{hint}"


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _the(name: str) -> str:
    return f"setting '{name}'" if name else "the file"


def _check_keys(entry: Any, value: Any, name: str) -> None:
    """Refuse unknown names in a dict field that says which ones it may have."""
    keys: Callable | None = entry.metadata.get(KEYS)
    known = keys(value) if keys is not None and isinstance(value, dict) else None
    if known is not None:
        for key in value:
            if key not in known:
                raise ValueError(_unknown(f"{name}.{key}", key, known))


# -- changes -------------------------------------------------------------------------------------------------


def _changed(settings: Any, path: list[str], value: Any, whole: str) -> Any:
    """A copy of nested dataclasses, dicts and tuples of named settings with one value replaced."""
    if isinstance(settings, tuple):
        index = _place(settings, path[0], whole)
        entry = settings[index]
        if len(path) == 1:
            raise ValueError(_is_a_group(entry, whole))
        return (*settings[:index], _changed(entry, path[1:], value, whole), *settings[index + 1 :])
    as_dict = isinstance(settings, dict)
    known = list(settings) if as_dict else [entry.name for entry in fields(settings)]
    key = path[0]
    if key not in known:
        raise ValueError(_unknown(whole, key, known))
    old = settings[key] if as_dict else getattr(settings, key)
    entry = None if as_dict else next(each for each in fields(settings) if each.name == key)
    if len(path) == 1:
        hint = Any if as_dict else _hints(type(settings))[key]
        value = _replacement(value, old, hint, whole)
        if entry is not None:
            _check_keys(entry, value, whole)
    elif isinstance(old, dict) and entry is not None and KEYS in entry.metadata and len(path) == 2:
        value = _with_key(old, path[1], value, entry, _hints(type(settings))[key], whole)
    elif isinstance(old, dict) or is_dataclass(old) or _is_named(old):
        value = _changed(old, path[1:], value, whole)
    else:
        raise ValueError(f"setting '{whole}': '{key}' is the value {old!r} and has no fields.")
    return {**settings, key: value} if as_dict else replace(settings, **{key: value})


def _with_key(old: dict, key: str, value: Any, entry: Any, hint: Any, whole: str) -> dict:
    """A dict with open keys, one of them new or replaced."""
    known = entry.metadata[KEYS](old)
    if known is not None and key not in old and key not in known:
        raise ValueError(_unknown(whole, key, known, old))
    inner = (typing.get_args(hint) or (str, Any))[1]
    value = _replacement(value, old[key], inner, whole) if key in old else _as_type(value, inner, whole)
    return {**old, key: value}


def _is_named(settings: Any) -> bool:
    return isinstance(settings, tuple) and bool(settings) and all(is_dataclass(each) for each in settings)


def _place(settings: tuple, key: str, whole: str) -> int:
    """Index of an entry by its name, or by the index itself."""
    names = [getattr(entry, "name", str(index)) for index, entry in enumerate(settings)]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(settings):
        return int(key)
    raise ValueError(_unknown(whole, key, names))


def _is_a_group(settings: Any, name: str) -> str:
    names = ", ".join(f"{name}.{entry.name}" for entry in fields(settings))
    return f"setting '{name}' is a group; change its fields: {names}."


def _replacement(value: Any, old: Any, hint: Any, name: str) -> Any:
    """The value, as JSON or a caller wrote it, in the type of the setting that it replaces."""
    if is_dataclass(old):
        raise ValueError(_is_a_group(old, name))
    if _is_named(old):
        names = ", ".join(f"{name}.{entry.name}" for entry in old)
        raise ValueError(f"setting '{name}' is a group; change the fields of its entries: {names}.")
    if hint is Any and old is not None:  # what the dict holds so far says what it takes
        hint = type(old)
        if hint in (list, dict):
            hint = dict[str, Any] if hint is dict else list
    try:
        return _converted(value, hint, name)
    except _OtherType:
        raise ValueError(
            f"setting '{name}' is {old!r} by default; got {value!r}, which is of another type: expected "
            f"{_described(hint)}."
        ) from None


# -- files ---------------------------------------------------------------------------------------------------


class _GivenTwice(Exception):
    pass


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _GivenTwice(f"'{key}' is given twice")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """YAML with the plain words and numbers of version 1.2, that refuses a name given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                raise _GivenTwice(f"'{key}' is given twice, again in line {line}")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_exact_float(self, number: float) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:float", repr(number))


_Dumper.add_representer(float, _Dumper.represent_exact_float)

# Tag -> the plain words and numbers of YAML 1.2, and what they may begin with ("" is an empty value).
_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _PLAIN.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
