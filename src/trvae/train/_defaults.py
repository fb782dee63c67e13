"""How long, and in which steps, models are trained by default."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

_MIN_EPOCHS, _MAX_EPOCHS = 10, 400
_LARGER_BATCH_SIZES = (256, 512)
_SHARE_OF_KL_WARMUP = 0.25


class TrainingDefaults(NamedTuple):
    """How a kind of model is trained by default, unless there are many cells."""

    n_seen: int
    """Number of epochs times that of cells, those for validation included."""
    batch_size: int
    """Cells in a minibatch."""
    plan_kwargs: dict[str, Any]
    """Arguments of the training plan for minibatches of that size, among them ``lr``."""


def completed_settings(
    batch_size: int | str,
    max_epochs: int | None,
    plan_kwargs: dict[str, Any] | None,
    *,
    defaults: TrainingDefaults,
    n_cells: int,
    datamodule: Any | None,
) -> tuple[int, int, dict[str, Any]]:
    """Cells in a minibatch, number of epochs and arguments of the plan, by default where not given.

    Parameters
    ----------
    batch_size, max_epochs, plan_kwargs
        What is given; ``"auto"`` and ``None`` stand for the defaults.
    defaults
        The defaults of the model.
    n_cells
        Number of cells.
    datamodule
        What has the cells in place of an AnnData, if it has.

    Raises
    ------
    ValueError
        If the number of epochs is not given and a data module has no ``n_obs``.
    """
    if datamodule is not None:
        n_cells = getattr(datamodule, "n_obs", 0)
        if max_epochs is None and not n_cells:
            raise ValueError("The datamodule does not say how many cells it has: pass max_epochs.")
        if batch_size == "auto":
            # Its minibatches are its own, however many cells it has.
            batch_size = defaults.batch_size
    max_epochs = max_epochs or default_max_epochs(n_cells, defaults)
    rate = defaults.plan_kwargs["lr"]
    if isinstance(batch_size, str):
        batch_size = default_batch_size(n_cells, defaults)
        # The larger the minibatch, the less noise the direction of a step has.
        rate *= math.sqrt(batch_size / defaults.batch_size)
    plan_kwargs = {**defaults.plan_kwargs, "lr": rate, **(plan_kwargs or {})}
    if plan_kwargs.get("n_steps_kl_warmup") is None:
        n_epochs = max(1, round(_SHARE_OF_KL_WARMUP * max_epochs))
        plan_kwargs.setdefault("n_epochs_kl_warmup", n_epochs)
    return batch_size, max_epochs, plan_kwargs


def default_batch_size(n_cells: int, defaults: TrainingDefaults) -> int:
    """Cells in a minibatch: more if even the fewest epochs then have the default number of them.

    Parameters
    ----------
    n_cells
        Number of cells.
    defaults
        The defaults of the model.
    """
    largest = _MIN_EPOCHS * n_cells / defaults.n_seen * defaults.batch_size
    sizes = (size for size in _LARGER_BATCH_SIZES if defaults.batch_size < size <= largest)
    return max(sizes, default=defaults.batch_size)


def default_max_epochs(n_cells: int, defaults: TrainingDefaults) -> int:
    """Epochs, between 10 and 400, in which as many cells are seen as by default.

    Parameters
    ----------
    n_cells, defaults
        See :func:`default_batch_size`.
    """
    n_epochs = round(defaults.n_seen / max(n_cells, 1))
    return min(max(n_epochs, _MIN_EPOCHS), _MAX_EPOCHS)
