"""What other packages print during a training although it is of no use to users of ours."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WARNINGS = (
    # Lightning asks PyTorch in a way that PyTorch will drop.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Our minibatches never have a single cell.
    r"\d+ cells moved from training set to validation set",
    r"Last batch will have a small size of",
    # Metrics are logged once an epoch.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)
_LOGGER = "lightning.pytorch.utilities.rank_zero"
_ADVERTISEMENT = "💡 Tip: For seamless cloud"


@contextmanager
def without_noise() -> Iterator[None]:
    """Leave out messages of Lightning and scvi-tools, by their words."""
    logger = logging.getLogger(_LOGGER)
    logger.addFilter(_is_no_advertisement)
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.removeFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_ADVERTISEMENT)
