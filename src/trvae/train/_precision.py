"""Training in other floating-point types than float32, the type of a model's weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trvae._utils._arguments import join_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

# Lightning's names, with the older ones that it still takes.
_ALLOWED = ("32-true", "64-true", "bf16-mixed", "16-mixed")
_ALIASES = (None, 32, 64, 16, "32", "64", "16", "bf16")


def check_precision(precision: Any) -> None:
    """Raise a ``ValueError`` unless a model can be trained with Lightning's ``precision``."""
    if precision not in (*_ALLOWED, *_ALIASES):
        raise ValueError(
            f"precision must be one of {join_names(_ALLOWED)}, got {precision!r}. Weights of 16 "
            "bits would lose most updates, and counts of 16 bits their exact values: "
            "'bf16-mixed' and '16-mixed' compute in 16 bits, but keep both in 32."
        )


@contextmanager
def float32_afterwards(module: torch.nn.Module) -> Iterator[None]:
    """Return a module to float32 at the end, whatever type Lightning has trained it in.

    Parameters
    ----------
    module
        The module that is trained within the context.
    """
    try:
        yield
    finally:
        module.float()
