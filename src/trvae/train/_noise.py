"""What other packages print during a training although no user of ours can act on it."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIGHTNING = "lightning.pytorch.utilities.rank_zero"
# Lightning asks PyTorch in a way that PyTorch will drop.
_WARNING = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
_ADVERTISEMENT = "💡 Tip: For seamless cloud"


@contextmanager
def without_noise() -> Iterator[None]:
    """Leave out messages of Lightning, by their words."""
    logger = logging.getLogger(_LIGHTNING)
    logger.addFilter(_is_no_advertisement)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _WARNING)
            yield
    finally:
        logger.removeFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_ADVERTISEMENT)
