"""Command-line options made from the configuration's one definition."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

F = TypeVar("F", bound=Callable[..., Any])


def options_for(
    section: type[BaseModel], names: Iterable[str], prefix: str = ""
) -> Callable[[F], F]:
    """A decorator that adds an option for each named field, with the field's description.

    An option that is not given is None: the field then keeps what it has. Its name is the field's,
    behind ``prefix``.
    """

    def decorate(function: F) -> F:
        for name in reversed(list(names)):
            function = _option(prefix + name, section.model_fields[name])(function)
        return function

    return decorate


def given(options: dict[str, Any], names: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Those of the named fields' options that were given."""
    return {
        name: options[prefix + name] for name in names if options.get(prefix + name) is not None
    }


def _option(name: str, field: FieldInfo) -> Callable[[F], F]:
    flag = "--" + name.replace("_", "-")
    base = _base_type(field.annotation)
    if base is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=field.description)
    if base is typing.Literal:
        choice = click.Choice([str(value) for value in typing.get_args(field.annotation)])
        return click.option(flag, name, type=choice, default=None, help=field.description)
    if base is list:
        return click.option(flag, name, type=_IntegerList(), default=None, help=field.description)
    return click.option(flag, name, type=base, default=None, help=field.description)


def _base_type(annotation: Any) -> Any:
    """``int`` of ``Annotated[int, …] | None``, ``list`` of ``list[int]``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [a for a in typing.get_args(annotation) if a is not type(None)]
        return _base_type(members[0])
    if typing.get_origin(annotation) is typing.Annotated:
        return _base_type(typing.get_args(annotation)[0])
    return typing.get_origin(annotation) or annotation


class _IntegerList(click.ParamType):  # type: ignore[type-arg]
    name = "integers"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return [int(item) for item in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list like 1,2,4")
