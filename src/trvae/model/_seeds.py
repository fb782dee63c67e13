"""A ``seed`` argument for scvi-tools' methods that draw."""

from __future__ import annotations

import functools
import inspect
import re
from typing import TYPE_CHECKING

from scvi.utils import de_dsp

from trvae._utils._arguments import SEED, check_arguments
from trvae._utils._seeds import seeded

if TYPE_CHECKING:
    from collections.abc import Callable

_SEED_DOC = """
seed
    Seed of all draws: the same seed gives the same answer."""


def with_seed(method: Callable, inherited: Callable | None = None) -> Callable:
    """Give a method that draws the keyword argument ``seed``, by default 0.

    A seeded method that is called by another one draws from the other's stream. Models that are
    not trained raise an error. If ``method`` overrides one of scvi-tools' (``inherited``), that
    one's arguments and documentation are kept, with the docstring of ``method`` inserted.
    """
    original = method if inherited is None else inherited

    @functools.wraps(original)
    def wrapped(self, *args, seed: int = 0, **kwargs):
        self._check_if_trained(warn=False)
        check_arguments(locals(), {"seed": SEED})
        if self.module.has_latent_draws:
            return method(self, *args, **kwargs)
        with seeded(seed), self.module.latent_draws(seed):
            return method(self, *args, **kwargs)

    signature = inspect.signature(original)
    *others, last = signature.parameters.values()
    argument = inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=0)
    is_variadic = last.kind is inspect.Parameter.VAR_KEYWORD
    parameters = [*others, argument, last] if is_variadic else [*others, last, argument]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    doc = _filled_in(inspect.cleandoc(original.__doc__ or ""))
    if inherited is not None:
        first_line, _, rest = doc.partition("\n")
        doc = f"{first_line}\n\n{inspect.cleandoc(method.__doc__ or '')}\n{rest}"
    before, returns, after = doc.partition("\n\nReturns\n")
    wrapped.__doc__ = before + _SEED_DOC + returns + after
    return wrapped


def overriding(inherited: Callable) -> Callable[[Callable], Callable]:
    """Decorate a method that overrides one of scvi-tools' by :func:`with_seed`."""
    return functools.partial(with_seed, inherited=inherited)


def _filled_in(doc: str) -> str:
    """Fill in the placeholders that scvi-tools leaves in docstrings."""
    return re.sub(
        r"^%\((\w+)\)s$",
        lambda match: de_dsp.params.get(match[1], match[0]),
        doc,
        flags=re.MULTILINE,
    )
