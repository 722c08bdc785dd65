# SPDX-License-Identifier: MIT
"""Whether data is what the schema says: yes or no, at once.

Nearly all data is. Only for words about what is not, imgvm.config.check asks jsonschema, whose import takes
longer than the rest of a start. Where the two could differ (1.0 as the number 1), this one says no.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imgvm.config.schema import compiled, referred, schema

Rule = Any  # a schema, which is a map or a truth value

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
    "boolean": (bool,), "null": (type(None),), "any": (object,),
}  # fmt: skip


def accepts(data: Any) -> bool:
    return _fits(data, schema())


def _fits(data: Any, rule: Rule) -> bool:
    if isinstance(rule, bool):
        return rule
    return all(_holds(data, keyword, limit, rule) for keyword, limit in rule.items())


def _holds(data: Any, keyword: str, limit: Any, rule: Rule) -> bool:
    if keyword in _WORDS or keyword.startswith("x-"):
        return True
    if keyword not in _KEYWORDS:
        return False  # jsonschema knows
    kind, test = _KEYWORDS[keyword]
    return not _is(data, kind) or test(data, limit, rule)


def _is(data: Any, kind: str) -> bool:
    return isinstance(data, _TYPES[kind]) and (kind in ("any", "boolean") or not isinstance(data, bool))


def _type(data: Any, kinds: str | list[str], _rule: Rule) -> bool:
    return any(_is(data, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _const(data: Any, word: Any, _rule: Rule) -> bool:
    return type(data) is type(word) and bool(data == word)


def _matches(key: str, pattern: str) -> bool:
    return compiled(pattern).search(key) is not None


def _differ(items: list[Any]) -> bool:
    return not any(item in items[:index] for index, item in enumerate(items))


def _properties(data: dict[str, Any], rules: Rule, _rule: Rule) -> bool:
    return all(_fits(data[key], rule) for key, rule in rules.items() if key in data)


def _pattern_properties(data: dict[str, Any], rules: Rule, _rule: Rule) -> bool:
    cases = [(key, pattern) for key in data for pattern in rules if _matches(key, pattern)]
    return all(_fits(data[key], rules[pattern]) for key, pattern in cases)


def _additional(data: dict[str, Any], others: Rule, rule: Rule) -> bool:
    patterns = rule.get("patternProperties", ())
    rest = [key for key in data if key not in rule.get("properties", ())]
    return all(_fits(data[key], others) for key in rest if not any(_matches(key, p) for p in patterns))


# Keyword -> the type of data that it is about, and the test.
_KEYWORDS: dict[str, tuple[str, Callable[[Any, Any, Rule], bool]]] = {
    "$ref": ("any", lambda data, _, rule: _fits(data, referred(rule))),
    "type": ("any", _type),
    "const": ("any", _const),
    "enum": ("any", lambda data, words, rule: any(_const(data, word, rule) for word in words)),
    "anyOf": ("any", lambda data, rules, _: any(_fits(data, rule) for rule in rules)),
    "oneOf": ("any", lambda data, rules, _: sum(_fits(data, rule) for rule in rules) == 1),
    "properties": ("object", _properties),
    "patternProperties": ("object", _pattern_properties),
    "additionalProperties": ("object", _additional),
    "propertyNames": ("object", lambda data, rule, _: all(_fits(key, rule) for key in data)),
    "required": ("object", lambda data, keys, _: all(key in data for key in keys)),
    "items": ("array", lambda data, rule, _: all(_fits(item, rule) for item in data)),
    "minItems": ("array", lambda data, limit, _: len(data) >= limit),
    "maxItems": ("array", lambda data, limit, _: len(data) <= limit),
    "uniqueItems": ("array", lambda data, wanted, _: not wanted or _differ(data)),
    "pattern": ("string", lambda data, pattern, _: _matches(data, pattern)),
    "minLength": ("string", lambda data, limit, _: len(data) >= limit),
    "minimum": ("number", lambda data, limit, _: data >= limit),
    "maximum": ("number", lambda data, limit, _: data <= limit),
}
_WORDS = ("$schema", "$id", "$defs", "$comment", "title", "description", "default")
