"""The history of a model that is trained several times."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator

    History = dict[str, pd.DataFrame]


@contextmanager
def new_history(model: Any) -> Iterator[None]:
    """Let scvi-tools start a history, and put it after the model's earlier one.

    By itself, scvi-tools would only continue the terms that the earlier one has, which are none
    after a training with another logger.

    Parameters
    ----------
    model
        The model that is trained within the context.
    """
    was_trained = model.is_trained_
    # A query that was not trained yet has its reference's.
    before = model.history_ if was_trained else None
    model.is_trained_, model.history_ = False, None
    try:
        yield
    finally:
        model.is_trained_ = was_trained or model.is_trained_
    model.history_ = joined(before or {}, model.history_ or {})


def joined(before: History, after: History) -> History:
    """Join two histories; epochs or steps of the second are counted on from those of the first.

    Parameters
    ----------
    before, after
        Tables by term, with the number of the epoch or step as index.
    """
    starts: dict[Any, int] = {}
    for table in before.values():
        unit = table.index.name
        starts[unit] = max(starts.get(unit, 0), int(table.index.max()) + 1)
    result = dict(before)
    for name, table in after.items():
        index = (table.index + starts.get(table.index.name, 0)).rename(table.index.name)
        parts = [result[name]] if name in result else []
        result[name] = pd.concat([*parts, table.set_axis(index)]).rename_axis(index.name)
    return result
