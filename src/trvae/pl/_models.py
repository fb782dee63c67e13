"""Which models can be plotted."""

from __future__ import annotations

from typing import Any


def check_is_one_model(model: Any, what: str) -> None:
    """Raise a ``ValueError`` if it is an ensemble.

    Parameters
    ----------
    model
        A model, or an ensemble, which has ``models``.
    what
        What of it is to be plotted, for the message.
    """
    if hasattr(model, "models"):
        raise ValueError(
            f"{type(model).__name__} has no {what} of its own, but each of its models has: plot "
            "that of one, such as model.models[0]."
        )
