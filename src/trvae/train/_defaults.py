"""How long, and in which steps, models are trained by default."""

from __future__ import annotations

import math
from typing import Any

_MIN_EPOCHS, _MAX_EPOCHS = 10, 400
# Numbers of minibatches and learning rates are for the first size.
_BATCH_SIZES = (128, 256, 512)
_SHARE_OF_KL_WARMUP = 0.25


def length_of_training(
    batch_size: int | str,
    max_epochs: int | None,
    n_steps: int,
    n_cells: int,
    datamodule: Any | None,
) -> tuple[int, int]:
    """Cells in a minibatch and number of epochs, by default where they are not given.

    Parameters
    ----------
    batch_size, max_epochs
        What is given; ``"auto"`` and ``None`` stand for the defaults.
    n_steps
        Number of minibatches that are enough.
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
    if isinstance(batch_size, str):
        # The minibatches of a data module are its own.
        batch_size = default_batch_size(n_cells if datamodule is None else 0, n_steps)
    return batch_size, max_epochs or default_max_epochs(n_cells, n_steps)


def default_batch_size(n_cells: int, n_steps: int) -> int:
    """Cells in a minibatch: 128, or more if the fewest epochs then have enough minibatches.

    Parameters
    ----------
    n_cells
        Number of cells.
    n_steps
        Number of minibatches that are enough.
    """
    n_seen = _MIN_EPOCHS * n_cells
    enough = (size for size in _BATCH_SIZES if n_seen >= n_steps * size)
    return max(enough, default=_BATCH_SIZES[0])


def default_max_epochs(n_cells: int, n_steps: int) -> int:
    """Epochs, between 10 and 400, in which as many cells are seen as in so many minibatches of 128.

    Parameters
    ----------
    n_cells, n_steps
        See :func:`default_batch_size`: numbers of cells and minibatches.
    """
    n_epochs = round(n_steps * _BATCH_SIZES[0] / max(n_cells, 1))
    return min(max(n_epochs, _MIN_EPOCHS), _MAX_EPOCHS)


def completed_plan_kwargs(
    given: dict[str, Any] | None, defaults: dict[str, Any], max_epochs: int, batch_size: int | None
) -> dict[str, Any]:
    """Add the learning rate and the length of the KL warm-up to a plan's arguments.

    Parameters
    ----------
    given
        Arguments of the user, which stay.
    defaults
        Arguments for minibatches of 128 cells, among them ``lr``.
    max_epochs, batch_size
        Number of epochs, and of cells in a minibatch if it was chosen by :func:`default_batch_size`.
    """
    # The larger the minibatch, the less noise the direction of a step has.
    rate = defaults["lr"] * math.sqrt((batch_size or _BATCH_SIZES[0]) / _BATCH_SIZES[0])
    plan_kwargs = {**defaults, "lr": rate, **(given or {})}
    if plan_kwargs.get("n_steps_kl_warmup") is None:
        n_epochs = max(1, round(_SHARE_OF_KL_WARMUP * max_epochs))
        plan_kwargs.setdefault("n_epochs_kl_warmup", n_epochs)
    return plan_kwargs
