"""Checks of arguments, with messages that say what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


_NAMES_SHOWN = 10


def join_names(names: Iterable[Any]) -> str:
    """Quote and join names for a message, the first few of many."""
    names = list(names)
    # Numpy's scalars would be shown with their type.
    plain = (n.item() if isinstance(n, np.generic) else n for n in names[:_NAMES_SHOWN])
    shown = ", ".join(map(repr, plain))
    return shown + (f", … ({len(names)} in all)" if len(names) > _NAMES_SHOWN else "")


def check_choice(argument: str, given: Any, allowed: Sequence[Any]) -> None:
    """Raise a ``ValueError`` that names what is allowed unless ``given`` is."""
    if given not in allowed:
        raise ValueError(f"{argument}={given!r} is not one of {', '.join(map(repr, allowed))}.")


def is_integer(value: Any) -> bool:
    """Whether it is a whole number of Python or numpy; booleans are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number; booleans are none."""
    return is_integer(value) or (isinstance(value, float | np.floating) and np.isfinite(value))


def check_from_0(argument: str, given: Any) -> None:
    """Raise a ``ValueError`` unless ``given`` is a finite number that is not negative."""
    if not is_number(given) or given < 0:
        raise ValueError(f"{argument}={given!r} is not a number from 0 on.")


def is_list_of(values: Any, allowed: Callable[[Any], bool]) -> bool:
    """Whether it is a list, tuple or array with at least one element, all of them allowed."""
    is_list = isinstance(values, list | tuple | np.ndarray)
    return is_list and len(values) > 0 and all(map(allowed, values))


def is_positive_integer(value: Any) -> bool:
    """Whether it is a whole number from 1 on."""
    return is_integer(value) and value > 0


def check_positive_integer(argument: str, given: Any) -> None:
    """Raise a ``ValueError`` unless ``given`` is one."""
    if not is_positive_integer(given):
        raise ValueError(f"{argument}={given!r} is not a positive integer.")


def check_positive_integers(argument: str, given: Any) -> None:
    """Raise a ``ValueError`` unless ``given`` is a list of them."""
    if not is_list_of(given, is_positive_integer):
        raise ValueError(f"{argument}={given!r} is not a list of positive integers.")


def check_seed(seed: Any) -> None:
    """Raise a ``ValueError`` unless numpy takes the seed."""
    if not is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} is not an integer from 0 to 2**32 - 1.")
