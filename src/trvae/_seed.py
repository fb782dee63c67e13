"""Seeds: of everything that draws within a context, and of scvi-tools' methods."""

from __future__ import annotations

import functools
import inspect
import random
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import settings
from scvi.utils import de_dsp

from trvae._data import check_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SEED_DOC = """
seed
    Seed of all draws, which are then the same whenever the method is called."""


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed everything that draws within the context, and put it back as it was after.

    Parameters
    ----------
    seed
        ``None`` leaves the generators alone, as scvi-tools does.
    """
    if seed is None:
        yield
        return
    numpy_state, python_state, scvi_seed = np.random.get_state(), random.getstate(), settings.seed
    with torch.random.fork_rng():
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            # The splitter reads the attribute; its setter would reseed the outer generators.
            settings._seed = seed
            yield
        finally:
            settings._seed = scvi_seed
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def random_states() -> dict:
    """States of all generators that training draws from, as plain values and tensors."""
    name, keys, *others = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.as_tensor(np.asarray(keys, np.int64)), *others],
        "python": random.getstate(),
    }


def set_random_states(states: dict) -> None:
    """Let all generators go on from what :func:`random_states` returned."""
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    name, keys, *others = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *others))
    random.setstate(states["python"])


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
