"""Cells encoded once and decoded under both conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS

from trvae._utils._matrices import nonzero_entries, stacked
from trvae.counterfactual._draws import normal_draws, random_tails
from trvae.counterfactual._residual import (
    draw_counts,
    draw_decoded_counts,
    draw_values,
    expected_counts,
    expected_values,
)
from trvae.data._codes import codes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trvae._utils._choices import Estimate
    from trvae.model._base import BaseTRVAE
    from trvae.model._selection import Selection


class Minibatch(NamedTuple):
    """Cells decoded under both conditions. Tensors are ``n_cells x n_genes`` unless stated."""

    cells: np.ndarray
    """Positions among the selected cells, ``n_cells``."""
    x: torch.Tensor
    """The cells' own counts or values."""
    size: torch.Tensor
    """Library size or registered size factor, which scales the rates, ``n_cells x 1``."""
    source: torch.Tensor
    """Expected counts or values under the source condition."""
    target: torch.Tensor
    """Expected counts or values under the target condition."""
    inverse_dispersion: torch.Tensor | None
    """Under the target condition, ``1 x n_genes``; ``None`` if the likelihood has none."""
    zero_inflation: torch.Tensor | None
    """Probability under the target condition; ``None`` if the likelihood has none."""
    source_sd: Any
    """Standard deviation of log-normalised values; ``None`` for counts."""
    target_sd: Any
    """The same under the target condition, ``1 x n_genes``."""


@torch.inference_mode()
def predict(
    models: Sequence[BaseTRVAE], selection: Selection, batch_size: int | None
) -> np.ndarray | sparse.csr_matrix:
    """Draw the selected cells under the target condition, ``n_cells x n_genes`` in the user's order.

    Decoded expectations are averaged over the models.
    """
    first = models[0]

    def as_returned(values: torch.Tensor) -> np.ndarray | sparse.csr_matrix:
        values = with_columns(first._as_registered(values), selection.gene_order)
        return nonzero_entries(values) if first.data_is_sparse_ else values.cpu().numpy()

    # Cells that are under the target condition already are counterfactuals of themselves.
    stays = codes_of(selection.source, first.conditions) == first.conditions.index(
        selection.target
    )
    stays &= selection.estimate != "decoded"
    moving, staying = (np.flatnonzero(chosen) for chosen in (~stays, stays))
    blocks = []
    if len(moving):
        own = selection.of_cells(moving)
        minibatches = decode_both(models, own, batch_size)
        blocks += [as_returned(first._drawn(minibatch, own)) for minibatch in minibatches]
    if len(staying):
        indices = selection.indices[staying]
        loader = first._make_data_loader(selection.registered, indices=indices)
        blocks += [as_returned(minibatch[REGISTRY_KEYS.X_KEY]) for minibatch in loader]
    predicted = stacked(blocks)
    return predicted[np.argsort(np.concatenate([moving, staying]))] if len(staying) else predicted


def with_columns(values: torch.Tensor, columns: np.ndarray) -> torch.Tensor:
    """Return the columns at these positions."""
    if np.array_equal(columns, np.arange(values.shape[1])):
        return values
    return values[:, torch.as_tensor(columns, device=values.device)]


def decode_both(
    models: Sequence[BaseTRVAE],
    selection: Selection,
    batch_size: int | None,
    draw: int | None = None,
) -> Iterator[Minibatch]:
    """Encode cells under the source and decode them under both conditions.

    With ``draw``, the number of a posterior draw of ``z``, models take turns; by default cells are
    decoded at the posterior mean and models are averaged.
    """
    check_trained(models)
    if draw is not None:
        models = [models[draw % len(models)]]
    decoded = []
    for model in models:
        registered = model._validate_anndata(selection.registered)
        own = replace(selection, registered=registered)
        decoded.append(_decode_with(model, own, batch_size, draw))
    return map(_average, zip(*decoded, strict=True))


def check_trained(models: Sequence[BaseTRVAE]) -> None:
    """Raise a ``RuntimeError`` unless all models are trained."""
    for model in models:
        model._check_if_trained(warn=False)


@torch.inference_mode()
def encode(
    model: BaseTRVAE, selection: Selection, batch_size: int | None
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Yield minibatches of the selected cells, on the model's device, and their posterior mean."""
    loader = model._make_data_loader(
        selection.registered,
        indices=selection.indices,
        batch_size=model._default_batch_size() if batch_size is None else batch_size,
    )
    module = model.module.eval()
    device = module.device
    for minibatch in loader:
        tensors = {name: values.to(device) for name, values in minibatch.items()}
        with module.posterior_mean():
            inferred = module.inference(**module._get_inference_input(tensors))
        yield tensors, inferred


@torch.inference_mode()
def _decode_with(
    model: BaseTRVAE, selection: Selection, batch_size: int | None, draw: int | None
) -> Iterator[Minibatch]:
    module = model.module
    target_code = model.conditions.index(selection.target)
    source_codes = codes_of(selection.source, model.conditions)
    start = 0
    for tensors, inferred in encode(model, selection, batch_size):
        x = tensors[REGISTRY_KEYS.X_KEY]
        cells = np.arange(start, start := start + len(x))
        if draw is not None:
            qz = inferred["qz"]
            noise = normal_draws(selection.keys[cells], selection.seed, draw, qz.loc.shape[-1])
            inferred["z"] = qz.loc + qz.scale * noise.to(qz.loc)
        inputs = module._get_generative_input(tensors, inferred)
        own = inputs["batch_index"]
        other = torch.full_like(own, target_code)
        source = module.expectation(**inputs)
        target = module.expectation(**inputs | {"batch_index": other}, base=source.base)
        for code in np.unique(source_codes[cells]):
            rows = np.flatnonzero(source_codes[cells] == code)
            index = slice(None) if len(rows) == len(cells) else torch.from_numpy(rows).to(x.device)
            if code == target_code:
                # Exactly, although sums may be rounded in another order.
                target.mean[index] = source.mean[index]
            elif code in selection.responses:
                response = selection.responses[code].to(source.mean)
                target.mean[index] = response(source.mean[index], target.mean[index])
        size_factor = inputs["size_factor"]
        # All cells are under one condition.
        spread = module.spread(other[0].long())
        is_counts = module.is_count_model
        fields = (
            x,
            inputs["library"].exp() if size_factor is None else size_factor,
            source.mean,
            target.mean,
            spread if is_counts else None,
            target.zero_inflation,
            None if is_counts else module.spread(own.flatten().long()),
            None if is_counts else spread,
        )
        # Apple's GPUs have no double precision, which draws need.
        device = torch.device("cpu") if x.device.type == "mps" else x.device
        moved: Any = (field if field is None else field.to(device) for field in fields)
        yield Minibatch(cells, *moved)


def _average(minibatches: tuple[Minibatch, ...]) -> Minibatch:
    """Average what the models differ in."""
    first, *others = minibatches
    if not others:
        return first

    def mean(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        return sum(other.to(values[0]) for other in values[1:]).add_(values[0]).div_(len(values))

    def mean_of(name: str) -> Any:
        return mean([getattr(minibatch, name) for minibatch in minibatches])

    differing = ("source", "target", "zero_inflation", "source_sd", "target_sd")
    averaged = first._replace(**{name: mean_of(name) for name in differing})
    if first.inverse_dispersion is None:
        return averaged
    # The variance is linear in the dispersion, not in its inverse.
    inverses: list[Any] = [minibatch.inverse_dispersion for minibatch in minibatches]
    return averaged._replace(inverse_dispersion=1 / mean([1 / inverse for inverse in inverses]))


def expected_expression(
    minibatch: Minibatch, estimate: Estimate, nonnegative: bool = False
) -> torch.Tensor:
    """Expectation of :func:`drawn_expression`, ``n_cells x n_genes``."""
    m = minibatch
    if estimate == "decoded":
        return m.target
    if m.source_sd is None:
        return expected_counts(m.x, m.source, m.target)
    return expected_values(m.x, m.source, m.target, m.source_sd, m.target_sd, nonnegative)


def drawn_expression(
    minibatch: Minibatch, selection: Selection, nonnegative: bool = False
) -> torch.Tensor:
    """Draw counts or log-normalised values under the target condition, ``n_cells x n_genes``.

    Decoded log-normalised values are the mean, without noise.
    """
    m, is_decoded = minibatch, selection.estimate == "decoded"
    if m.source_sd is not None and is_decoded:
        return m.target
    tails = random_tails(selection.keys[m.cells], selection.seed, m.x.shape[1], m.x.device)
    if m.source_sd is not None:
        return draw_values(m.x, m.source, m.target, m.source_sd, m.target_sd, tails, nonnegative)
    if is_decoded:
        return draw_decoded_counts(m.target, m.inverse_dispersion, m.zero_inflation, tails)
    return draw_counts(m.x, m.source, m.target, m.inverse_dispersion, tails)
