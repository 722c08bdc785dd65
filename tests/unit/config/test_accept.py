# SPDX-License-Identifier: MIT
"""The quick check of a config says what jsonschema says."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgvm.config import Config, accept, check, document
from imgvm.config.schema import schema

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 64, 65, 1 << 70, 1.0, 1.5, "", "a", "A b", "none", "auto", "1GiB", "1GiB\n", "1.5", "/", "/a", "0755",
    "ctrl-a", "30s", "x" * 64, "\N{SNOWMAN}", [], [1], ["a"], [["a"]], {}, {"a": 1}, {"x-a": 1}, {"path": "a"}, {"bundled": True},
    {"distro": "debian:bookworm"}, {"registry": "a/b:c"}, {"path": "/a", "content": ""}, {"path": "/a", "link": "b", "content": ""},
)  # fmt: skip


def rules(rule: Any) -> Iterator[Any]:
    yield rule
    if isinstance(rule, dict):
        for keyword, value in rule.items():
            if keyword in ("properties", "patternProperties", "$defs"):
                children = list(value.values())
            else:
                nested = keyword in ("items", "additionalProperties", "propertyNames", "anyOf", "oneOf")
                children = value if isinstance(value, list) and nested else [value] if nested else []
            for child in children:
                yield from rules(child)


def by_jsonschema(data: Any) -> bool:
    return not list(check._validator().iter_errors(data))


def documents() -> list[Any]:
    found = []
    for path in EXAMPLES:
        read = document.parse(path.read_bytes(), path.name).data
        found.append(read)
        if accept.accepts(read):
            found.append(json.loads(Config.load(path).resolved()))
    return found


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """All of a document as (container, key)."""
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from places(data[key])


def all_keys() -> list[str]:
    return sorted({key for rule in rules(schema()) if isinstance(rule, dict) for key in rule.get("properties", ())})


def mutated(seed: Any, keys: list[str], others: list[Any], rng: random.Random) -> Any:
    data = copy.deepcopy(seed)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = list(places(data))
        if not at:
            break
        container, key = rng.choice(at)
        donor, named = rng.choice(list(places(rng.choice(others))))
        match rng.randrange(5):
            case 0 | 1:
                container[key] = copy.deepcopy(rng.choice(ODD))
            case 2:
                container[key] = copy.deepcopy(donor[named])
            case 3:
                del container[key]
            case _:
                target = container[key] if isinstance(container[key], dict) else data
                value = copy.deepcopy(donor[named] if rng.random() < 0.5 else rng.choice(ODD))
                if isinstance(target, dict):
                    target[rng.choice([*keys, "x-any", "nonsense"])] = value
                else:
                    target.append(value)
    return data


def has_floats(data: Any) -> bool:
    return isinstance(data, float) or any(isinstance(container[key], float) for container, key in places(data))


def test_every_keyword_of_the_schema_is_known() -> None:
    used = {keyword for rule in rules(schema()) if isinstance(rule, dict) for keyword in rule}
    assert {word for word in used if not word.startswith("x-")} - set(accept._WORDS) == set(accept._KEYWORDS)
    for rule in rules(schema()):
        if isinstance(rule, dict):
            words = [*rule.get("enum", ()), *([rule["const"]] if "const" in rule else [])]
            assert all(isinstance(word, (str, int, bool, type(None))) for word in words)  # compared by type and value


@pytest.mark.parametrize("seed", range(8))
def test_it_says_what_jsonschema_says(seed: int) -> None:
    rng, seeds, keys = random.Random(seed), documents(), all_keys()
    counts = [0, 0]
    for _ in range(400):
        data = mutated(rng.choice(seeds), keys, seeds, rng)
        expected = by_jsonschema(data)
        if has_floats(data):
            assert expected or not accept.accepts(data), data
        else:
            assert accept.accepts(data) is expected, data
        counts[expected] += 1
    assert min(counts) > 20


@pytest.mark.parametrize("data", ODD)
def test_what_is_no_config_at_all(data: Any) -> None:
    assert accept.accepts(data) is by_jsonschema(data) is False
