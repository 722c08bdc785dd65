# SPDX-License-Identifier: MIT
"""Records do what frozen dataclasses do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from imgvm.record import NOTHING, Record


class Plain(Record, unshown=("secret",)):
    name: str
    size: int = 3
    inner: Plain | None = None
    secret: str = "s"
    more: Mapping[str, int] = NOTHING

    @property
    def double(self) -> int:
        return 2 * self.size


class Other(Record):
    name: str
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    size: int = 3
    inner: Model | None = None
    secret: str = dataclasses.field(default="s", repr=False)
    more: Mapping[str, int] = dataclasses.field(default_factory=dict)


CALLS: list[Callable[[Any], Any]] = [
    lambda kind: kind("a"),
    lambda kind: kind("a", 4, secret="t"),
    lambda kind: kind(size=0, name="a", inner=kind("b")),
    lambda kind: kind("a", more={"x": 1}),
]
FAULTS: list[Callable[[Any], Any]] = [
    lambda kind: kind(),
    lambda kind: kind(size=1),
    lambda kind: kind("a", name="b"),
    lambda kind: kind("a", nonsense=1),
    lambda kind: kind("a", 1, None, "s", {}, 6),
]


@pytest.mark.parametrize("call", CALLS)
def test_like_the_model(call: Callable[[Any], Any]) -> None:
    ours, model = call(Plain), call(Model)
    assert repr(ours) == repr(model).replace("Model(", "Plain(")
    assert dataclasses.asdict(ours) == dataclasses.asdict(model)
    assert dataclasses.is_dataclass(ours)
    assert [field.name for field in dataclasses.fields(ours)] == [field.name for field in dataclasses.fields(model)]
    assert dataclasses.replace(ours, size=9) == Plain(**vars(ours) | {"size": 9})
    assert ours == call(Plain)
    assert ours != dataclasses.replace(ours, size=9)
    assert copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours)) == ours


@pytest.mark.parametrize("call", FAULTS)
def test_wrong_values(call: Callable[[Any], Any]) -> None:
    for kind in (Plain, Model):
        with pytest.raises(TypeError):
            call(kind)


def test_frozen_hashed_and_of_its_kind() -> None:
    one = Other("a")
    assert {one, Other("a"), Other("a", 4)} == {Other("a"), Other("a", 4)}
    assert one != Plain("a") and one != ("a", 3)
    assert Plain.size == 3 and Plain("a").double == 6
    for change in (lambda: setattr(one, "size", 4), lambda: setattr(one, "new", 4), lambda: delattr(one, "size")):
        with pytest.raises(AttributeError):
            change()
    assert one == Other("a")
    with pytest.raises(TypeError):
        hash(Plain("a", more={"x": 1}))
