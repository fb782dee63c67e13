"""Rules for arguments: what a value must be, and the error that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_NAMES_SHOWN = 10


@dataclass(frozen=True)
class Rule:
    """What the value of an argument must be."""

    description: str
    """Completes the sentence "the argument must be ..."."""
    accepts: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        """Accept what either rule accepts."""
        return Rule(
            f"{self.description} or {other.description}",
            lambda value: self.accepts(value) or other.accepts(value),
        )


def check_arguments(given: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise a ``ValueError`` for the first argument that breaks its rule.

    Parameters
    ----------
    given
        Arguments by name, such as ``locals()``; those without a rule are ignored.
    rules
        Rules by the name of the argument.
    """
    for name, rule in rules.items():
        if not rule.accepts(given[name]):
            raise ValueError(f"{name} must be {rule.description}, got {given[name]!r}.")


def is_integer(value: Any) -> bool:
    """Whether it is an integer of Python or NumPy, and not a boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number of Python or NumPy, and not a boolean."""
    return is_integer(value) or (isinstance(value, float | np.floating) and np.isfinite(value))


def number(description: str, is_within: Callable[[Any], bool]) -> Rule:
    """Rule for a finite number within a range."""
    return Rule(description, lambda value: bool(is_number(value) and is_within(value)))


def integer(description: str, is_within: Callable[[Any], bool]) -> Rule:
    """Rule for an integer within a range."""
    return Rule(description, lambda value: bool(is_integer(value) and is_within(value)))


def list_of(rule: Rule) -> Rule:
    """Rule for a list, tuple, range or array with at least one element, all obeying the rule."""
    return Rule(
        f"a list in which each element is {rule.description}",
        lambda values: (
            isinstance(values, list | tuple | range | np.ndarray)
            and len(values) > 0
            and all(map(rule.accepts, values))
        ),
    )


def choice(*allowed: Any) -> Rule:
    """Rule for one of several values."""
    return Rule(
        f"one of {join_names(allowed)}",
        lambda value: any(
            value is allowed_value
            or (type(value) is type(allowed_value) and value == allowed_value)
            for allowed_value in allowed
        ),
    )


def choice_of(literal: Any) -> Rule:
    """Rule for one of the values of a ``typing.Literal``."""
    return choice(*get_args(literal))


def instance_of(*classes: type) -> Rule:
    """Rule for an object of one of several classes."""
    names = " or ".join(cls.__name__ for cls in classes)
    return Rule(f"of type {names}", lambda value: isinstance(value, classes))


NONE = Rule("None", lambda value: value is None)
POSITIVE_INTEGER = integer("a positive integer", lambda value: value > 0)
AT_LEAST_2 = integer("an integer of at least 2", lambda value: value >= 2)
NONNEGATIVE_INTEGER = integer("a non-negative integer", lambda value: value >= 0)
NONNEGATIVE_NUMBER = number("a non-negative number", lambda value: value >= 0)
POSITIVE_NUMBER = number("a positive number", lambda value: value > 0)
SHARE = number("a number from 0 to 1", lambda value: 0 <= value <= 1)
STRICT_SHARE = number("a number between 0 and 1, both excluded", lambda value: 0 < value < 1)
SEED = integer("an integer from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)


def join_names(names: Iterable[Any]) -> str:
    """Quote and join names for a message; of many, the first few."""
    names = list(names)
    # NumPy's scalars would be shown with their type.
    plain = (n.item() if isinstance(n, np.generic) else n for n in names[:_NAMES_SHOWN])
    shown = ", ".join(map(repr, plain))
    return shown + (f", … ({len(names)} in all)" if len(names) > _NAMES_SHOWN else "")
