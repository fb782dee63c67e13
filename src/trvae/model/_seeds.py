"""A ``seed`` argument for scvi-tools' methods that draw."""

from __future__ import annotations

import functools
import inspect
import re
from typing import TYPE_CHECKING

from scvi.utils import de_dsp

from trvae._utils._arguments import check_seed
from trvae._utils._seeds import seeded

if TYPE_CHECKING:
    from collections.abc import Callable


_SEED_DOC = """
seed
    Seed of all draws, which are then the same whenever the method is called."""


def with_seed(method: Callable, inherited: Callable | None = None) -> Callable:
    """Give a model's method that draws the keyword argument ``seed``, by default 0.

    A method that is called by another one with a seed draws from the other's. Models that are not
    trained have no answer.

    Parameters
    ----------
    method
        Method of a model whose module has ``latent_draws``.
    inherited
        Method of scvi-tools that ``method`` overrides, from which it has its arguments and all of
        its documentation but its own docstring, which goes below the first line.
    """
    original = method if inherited is None else inherited

    @functools.wraps(original)
    def wrapped(self, *args, seed: int = 0, **kwargs):
        self._check_if_trained(warn=False)
        check_seed(seed)
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


def _filled_in(doc: str) -> str:
    """A docstring with the descriptions that scvi-tools has left as placeholders."""
    return re.sub(
        r"^%\((\w+)\)s$",
        lambda found: de_dsp.params.get(found[1], found[0]),
        doc,
        flags=re.MULTILINE,
    )


def overriding(inherited: Callable) -> Callable[[Callable], Callable]:
    """Decorate a method with :func:`with_seed` that overrides one of scvi-tools'.

    Parameters
    ----------
    inherited
        The overridden method.
    """
    return functools.partial(with_seed, inherited=inherited)
