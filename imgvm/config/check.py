# SPDX-License-Identifier: MIT
"""A tree against the schema: each violation becomes one Problem at its place, in words of ours.

The schema carries the words it needs: `x-what` names a type, `x-message` replaces the text of an error, and
`x-planned` lists keys and values that are known but not supported by this version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from imgvm.config.schema import compiled, referred, schema
from imgvm.config.suggest import did_you_mean
from imgvm.config.tree import Path, Tree, format_path
from imgvm.errors import Problem, cut

Violation = Any  # a jsonschema ValidationError, whose attributes' types say less than the schema does

_TYPE_WORDS = {
    "object": "a map", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number",
    "boolean": "true or false", "null": "nothing",
}  # fmt: skip


def _is_integer(_checker: Any, instance: Any) -> bool:
    # jsonschema takes 2.0 for an integer; what is written is kept, so it must be one.
    return isinstance(instance, int) and not isinstance(instance, bool)


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not compiled(pattern).search(instance):
        yield ValidationError(f"does not match {pattern}")


@cache
def _validator() -> Any:
    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
    extend: Any = jsonschema.validators.extend
    return extend(Draft202012Validator, {"pattern": _pattern}, type_checker=checker)(schema())


def check(tree: Tree) -> list[Problem]:
    """All the violations of the schema."""
    problems: list[Problem] = []
    for error in _validator().iter_errors(tree.data):
        if not _is_open(error):
            problems += _explain(tree, error)
    return problems


def _is_open(error: Violation) -> bool:
    """Whether a fault of a profile is none: it names only what it changes, its variables are unknown."""
    if not error.absolute_path or error.absolute_path[0] != "profiles":
        return False
    unknown = error.instance is None or (isinstance(error.instance, str) and "${" in error.instance)
    return unknown or _is_about_keys(error)


def _explain(tree: Tree, error: Violation) -> list[Problem]:
    path: Path = tuple(error.absolute_path)
    rule = error.schema if isinstance(error.schema, dict) else {}
    keyword = error.validator
    if keyword == "additionalProperties":
        known = rule.get("properties", {})
        allowed = [re.compile(pattern) for pattern in rule.get("patternProperties", {})]
        return [
            _unknown_key(tree, (*path, key), key, rule)
            for key in error.instance
            if key not in known and not any(pattern.search(key) for pattern in allowed)
        ]
    if keyword == "required":
        return [_required(tree, path, error, rule)]
    if keyword in ("anyOf", "oneOf"):
        return _union(tree, path, error, rule)
    if keyword == "type":
        return [tree.problem(path, _wrong_type(error.instance, rule), _type_hint(error.instance, rule))]
    if keyword in ("enum", "const"):
        return [_wrong_value(tree, path, error, rule)]
    in_names = "propertyNames" in error.absolute_schema_path
    if in_names:
        return [tree.problem((*path, error.instance), _message(error, rule), key=True)]
    return [tree.problem(path, _message(error, rule))]


def _unknown_key(tree: Tree, path: Path, key: str, rule: dict[str, Any]) -> Problem:
    planned = rule.get("x-planned", ())
    if key in planned:
        message = "unknown key: this version of imgvm does not support it yet"
        return tree.problem(path, message, key=True)
    guess = did_you_mean(key, rule["properties"])
    if guess:
        hint = f"did you mean {guess}?"
    elif (other := did_you_mean(key, planned)) is not None:
        hint = f"did you mean {other}? This version of imgvm does not support that yet"
    elif (place := _elsewhere(key, path)) is not None:
        hint = f"there is {place}"
    else:
        hint = "known here: " + ", ".join(rule["properties"])
    return tree.problem(path, "unknown key", hint, key=True)


def _elsewhere(key: str, path: Path) -> str | None:
    """The place of a key that exists on the other of the two upper levels (`memory` at the top)."""
    top = schema()["properties"]
    if len(path) > 1 and key in top:
        return f"{key} at the top level"
    for name, value in top.items():
        target = schema()["$defs"].get(name, {}) if "$ref" in value else value
        if len(path) == 1 and key in target.get("properties", {}):
            return f"{name}.{key}"
    return None


def _required(tree: Tree, path: Path, error: Violation, rule: dict[str, Any]) -> Problem:
    missing = next(key for key in rule["required"] if f"{key!r} is" in error.message)
    if not path and missing == "version":
        return tree.problem(path, "version is missing", "a config begins with `version: 1`")
    return tree.problem(path, f"{missing} is missing")


def _union(tree: Tree, path: Path, error: Violation, rule: dict[str, Any]) -> list[Problem]:
    """Descends into the branch that the value was meant for: the one whose type it has."""
    branches: dict[int, list[Violation]] = {}
    for child in error.context or ():
        branches.setdefault(int(child.schema_path[0]), []).append(child)
    of_type = [
        children for children in branches.values()
        if not any(_is_type_mismatch(child, error.instance) for child in children)
    ]  # fmt: skip
    if "x-message" in rule and _is_about_keys(error):
        misspelt = isinstance(error.instance, dict) and not error.instance.keys() <= rule["properties"].keys()
        return [] if misspelt else [tree.problem(path, rule["x-message"])]
    if len(of_type) == 1 and not _is_about_words(of_type[0][0]):
        return [problem for child in of_type[0] for problem in _explain(tree, child)]
    if of_type:
        # Words and a text: the message of the text says more, unless the value is nearly one of the words.
        words = [str(word) for word in _words(rule)]
        guess = did_you_mean(error.instance, words) if isinstance(error.instance, str) else None
        hint = f"did you mean {guess}?" if guess else None
        return [tree.problem(path, f"must be {_what(rule)}, not {_show(error.instance)}", hint)]
    hint = _type_hint(error.instance, {"x-what": _what(rule)})
    return [tree.problem(path, f"must be {_what(rule)}, not {_show(error.instance)}", hint)]


def _is_about_keys(error: Violation) -> bool:
    """Whether all that the branches miss, or have too much of, are keys."""
    return error.validator == "required" or (
        error.validator in ("anyOf", "oneOf") and all(map(_is_about_keys, error.context))
    )


def _is_of_the_value_itself(child: Violation) -> bool:
    return not child.relative_path


def _is_about_words(child: Violation) -> bool:
    return child.validator in ("enum", "const") and _is_of_the_value_itself(child)


def _is_type_mismatch(child: Violation, instance: Any) -> bool:
    if not _is_of_the_value_itself(child):
        return False
    if child.validator == "type":
        return True
    words = [child.schema["const"]] if "const" in child.schema else child.schema.get("enum", [])
    return child.validator in ("enum", "const") and not any(type(word) is type(instance) for word in words)


def _words(rule: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for branch in rule.get("anyOf", rule.get("oneOf", [])):
        found += [branch["const"]] if "const" in branch else branch.get("enum", [])
    return found


def _what(rule: dict[str, Any]) -> str:
    """A type in words."""
    target = referred(rule)
    if "x-what" in target:
        return str(target["x-what"])
    if "enum" in target:
        return "one of " + ", ".join(map(str, target["enum"]))
    if "const" in target:
        return _show(target["const"])
    branches = target.get("anyOf", target.get("oneOf"))
    if branches and "type" not in target:
        return " or ".join(dict.fromkeys(_what(branch) for branch in branches))
    kinds = target.get("type", [])
    return " or ".join(_TYPE_WORDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "a map" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return cut(text, 60)


def _wrong_type(instance: Any, rule: dict[str, Any]) -> str:
    return f"must be {_what(rule)}, not {_show(instance)}"


def _type_hint(instance: Any, rule: dict[str, Any]) -> str | None:
    what = _what(rule)
    number = isinstance(instance, (int, float)) and not isinstance(instance, bool)
    if "size" in what and number:
        return f"sizes carry a unit: {instance}MiB?"
    if "duration" in what and number:
        return f"durations carry a unit: {instance}s?"
    if what.startswith("text") and (number or isinstance(instance, bool)):
        return "quote it"
    word = instance.lower() if isinstance(instance, str) else ""
    if what == "true or false" and word in ("yes", "no", "on", "off"):
        return "write " + ("true" if word in ("yes", "on") else "false")
    if what == "a whole number" and word.isdigit():
        return "write it without quotes"
    return None


def _wrong_value(tree: Tree, path: Path, error: Violation, rule: dict[str, Any]) -> Problem:
    instance = error.instance
    if isinstance(instance, str) and instance in rule.get("x-planned", ()):
        return tree.problem(path, f"{instance} is not supported by this version of imgvm yet", _one_of(rule))
    if format_path(path) == "version":
        message = f"version {_show(instance)} is not known to this version of imgvm"
        return tree.problem(path, message, "it reads version 1")
    guess = did_you_mean(instance, rule["enum"]) if isinstance(instance, str) and "enum" in rule else None
    hint = f"did you mean {guess}?" if guess else None
    return tree.problem(path, f"must be {_what(rule)}, not {_show(instance)}", hint)


def _one_of(rule: dict[str, Any]) -> str:
    return "supported: " + ", ".join(map(str, rule["enum"]))


def _message(error: Violation, rule: dict[str, Any]) -> str:
    """Of a violation that is neither about keys nor about types."""
    shown = _show(error.instance)
    limit = error.validator_value
    if "x-message" in rule and error.validator in ("pattern", "maxItems"):
        return f"{shown} {rule['x-message']}" if error.validator == "pattern" else str(rule["x-message"])
    return {
        "minimum": f"must be at least {limit}, not {shown}",
        "maximum": f"must be at most {limit}, not {shown}",
        "minLength": "must not be empty",
        "minItems": "must not be empty",
    }.get(str(error.validator), str(error.message))
