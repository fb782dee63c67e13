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

_RAISES_DOC = """Raises
------
RuntimeError
    If the model is not trained.
ValueError
    If a gene of the model is missing, a condition is unknown, or another argument is not one of
    those allowed."""

# Where these models differ from what scvi-tools says of its own.
_CORRECTIONS = {
    r"with :attr:`~anndata\.AnnData\.var_names` in the same\s+order as the ones used to train the model": (
        "whose genes are matched by name"
    ),
    r"then real observed batch is used": "then each cell's own condition is used",
    r" *- int, then batch transform_batch is used\.?\n": "",
    r"- Otherwise based on string": "- Otherwise, a condition, or a list of conditions",
}


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
    sections = re.split(r"\n\n(?=\w+\n-+\n)", doc)
    known = [
        i for i, text in enumerate(sections) if text.startswith(("Parameters\n", "Returns\n"))
    ]
    sections[known[0]] += _SEED_DOC
    sections.insert(known[-1] + 1, _RAISES_DOC)
    wrapped.__doc__ = "\n\n".join(sections)
    return wrapped


def overriding(inherited: Callable) -> Callable[[Callable], Callable]:
    """Decorate a method that overrides one of scvi-tools' by :func:`with_seed`."""
    return functools.partial(with_seed, inherited=inherited)


def _filled_in(doc: str) -> str:
    """Fill in the placeholders that scvi-tools leaves in docstrings, and correct what differs here."""
    doc = re.sub(
        r"^%\((\w+)\)s$",
        lambda match: de_dsp.params.get(match[1], match[0]),
        doc,
        flags=re.MULTILINE,
    )
    for theirs, ours in _CORRECTIONS.items():
        doc = re.sub(theirs, ours, doc)
    return doc
