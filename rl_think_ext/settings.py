"""Settings: YAML read safely into the methods' dataclasses, with errors that name the place and the nearest key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import types
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rl_think_ext.errors import UserError

ENVIRONMENT = "RL_THINK_CONFIG"
METHODS = ("rlp", "rlmt", "rlpt", "rpt", "verifree", "rlpr")
T = TypeVar("T")


def read_yaml(source: str, where: str) -> dict[str, Any]:
    """A YAML mapping out of text, by the safe loader: no tag can make an object (F40).

    Raises:
        UserError: not YAML, an unsafe tag, or not a mapping.
    """
    import yaml

    try:
        loaded = yaml.safe_load(source)
        twice = _given_twice(yaml.compose(source, Loader=yaml.SafeLoader))
    # Beside its own errors the safe loader lets ValueError (2001-13-40 is no date) and RecursionError through.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise UserError(f"{where}{line}: not plain YAML: {problem}") from error
    if twice is not None:
        raise UserError(f"{where}, line {twice.start_mark.line + 1}: the key `{twice.value}` is given twice")
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{where}: expected `key: value` lines, got {type(loaded).__name__}")
    return loaded


def _given_twice(node: Any) -> Any:
    """The first key node that its mapping already has, or None: YAML would silently take the last."""
    pairs = node.value if type(node).__name__ == "MappingNode" else ()
    seen = set()
    for key, value in pairs:
        if key.value.__hash__ and key.value in seen:
            return key
        seen.add(key.value if key.value.__hash__ else id(key))
        if (inner := _given_twice(value)) is not None:
            return inner
    return None


def read_file(path: str | Path) -> dict[str, Any]:
    """The YAML mapping of a file.

    Raises:
        UserError: no such file, not text, or not a mapping.
    """
    try:
        return read_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"could not read the settings file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def from_environment(method: str) -> tuple[dict[str, Any], str]:
    """The block of one method out of RL_THINK_CONFIG, and where it came from.

    The variable holds a path, relative to the current folder, or inline YAML; without it the defaults hold.

    Raises:
        UserError: neither a file nor a YAML mapping; the text names what was tried.
    """
    value = os.environ.get(ENVIRONMENT, "").strip()
    if not value:
        return {}, "defaults"
    # os.path, not Path: a long inline text is "File name too long" to Path.exists().
    if ":" in value and ("\n" in value or not os.path.exists(value)) and (": " in value or value.endswith(":")):
        block, where = read_yaml(value, f"inline YAML in {ENVIRONMENT}"), f"inline YAML in {ENVIRONMENT}"
    else:
        if not os.path.isfile(value):
            raise UserError(
                f"{ENVIRONMENT}={value}: no such file (tried {Path(value).absolute()}), and not inline YAML"
            )
        block, where = read_file(value), value
    return method_block(block, method, where), where


def method_block(block: Mapping[str, Any], method: str, where: str) -> dict[str, Any]:
    """The settings of one method out of a `{method: {...}}` block.

    Raises:
        UserError: an unknown method, or a block that is not a mapping.
    """
    check_keys(block, METHODS, where)
    inner = {} if block.get(method) is None else block[method]
    if not isinstance(inner, Mapping):
        raise UserError(f"{where}: `{method}:` holds {inner!r}; expected `key: value` lines")
    return dict(inner)


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse a key that does not exist, naming the nearest one.

    Raises:
        UserError: the first unknown key.
    """
    names = list(known)
    for key in given:
        if key not in names:
            near = get_close_matches(str(key), names, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(sorted(names))}"
            raise UserError(f"{where}: unknown key `{key}`; {hint}")


def build(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass out of a mapping, every value checked against the field's type.

    Raises:
        UserError: an unknown key, a wrong type, or a value that the dataclass refuses.
    """
    hints = get_type_hints(cls)
    check_keys(mapping, [f.name for f in dataclasses.fields(cls)], where)  # type: ignore[arg-type]
    values = {key: _checked(value, hints[key], f"{where}: `{key}`") for key, value in mapping.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in choices:
            near = get_close_matches(str(value), [str(c) for c in choices], 1)
            hint_text = f"; did you mean `{near[0]}`?" if near else ""
            raise UserError(f"{where} is one of {', '.join(map(str, choices))}, got {value!r}{hint_text}")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        return _checked(value, next(c for c in choices if c is not type(None)), where)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3 as text: only 1.0e-3 is a number there.
        try:
            return float(value)
        except ValueError:
            raise UserError(f"{where} is a number, got {value!r}") from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where} is a {hint.__name__}, got {value!r}")
    return value


def fingerprint(config: Any) -> str:
    """Twelve hex digits of a dataclass's values: equal settings give equal digits on every rank."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
