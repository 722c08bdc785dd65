# SPDX-License-Identifier: MIT
"""Frozen data, cheap to define.

A class of `Record` behaves as `@dataclass(frozen=True)` makes one, and what `dataclasses` offers for those
works. But dataclasses compiles six methods for each class, which for the two dozen classes that every run
needs took a third of its start; here one set of methods serves all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NoReturn, dataclass_transform

NOTHING: Mapping[Any, Any] = {}  # the default of a mapping


class _Fields:
    """`__dataclass_fields__`, made when somebody asks."""

    def __get__(self, _instance: object, owner: type[Record]) -> dict[str, Any]:
        import dataclasses

        listed = []
        for name in owner._names:
            field: Any = dataclasses.field(repr=name not in owner._unshown)
            if name in owner._defaults:
                field.default_factory = partial(owner._defaults.get, name)
            listed.append((name, Any, field))
        return {field.name: field for field in dataclasses.fields(dataclasses.make_dataclass("of", listed))}


@dataclass_transform(frozen_default=True)
class Record:
    """Its annotated names are its fields, in order. Defaults are shared, so they are nothing that changes."""

    _names: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}
    _unshown: ClassVar[tuple[str, ...]] = ()  # in repr
    __dataclass_fields__: ClassVar[Any] = _Fields()

    def __init_subclass__(cls, unshown: tuple[str, ...] = ()) -> None:
        own = vars(cls)
        cls._names = tuple(own.get("__annotations__", ()))
        cls._defaults = {name: own[name] for name in cls._names if name in own}
        cls._unshown = unshown

    def __init__(self, *values: Any, **named: Any) -> None:
        kind, names = type(self).__name__, self._names
        if len(values) > len(names):
            raise TypeError(f"{kind} takes {len(names)} values, not {len(values)}")
        given = dict(zip(names, values, strict=False))
        for name in named:
            if name in given or name not in names:
                raise TypeError(f"{kind} {'is given two of' if name in given else 'has no'} {name}")
        given = self._defaults | given | named
        if len(given) < len(names):
            raise TypeError(f"{kind} lacks {', '.join(name for name in names if name not in given)}")
        vars(self).update(given)

    def _values(self) -> tuple[Any, ...]:
        return tuple(vars(self)[name] for name in self._names)

    def __repr__(self) -> str:
        shown = [name for name in self._names if name not in self._unshown]
        return f"{type(self).__qualname__}({', '.join(f'{name}={vars(self)[name]!r}' for name in shown)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __setattr__(self, name: str, _value: object) -> NoReturn:
        raise AttributeError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"cannot delete field {name!r}")
