"""Cells encoded once and decoded under both conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS

from trvae._utils._matrices import stacked
from trvae.counterfactual._draws import normal_draws
from trvae.counterfactual._residual import (
    count_quantile,
    draw_counts,
    draw_values,
    expected_counts,
    expected_values,
)
from trvae.module._base import BASE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trvae.counterfactual._residual import Estimate
    from trvae.model._base import BaseTRVAE
    from trvae.model._selection import Selection


class Minibatch(NamedTuple):
    """Cells decoded under both conditions. Arrays are ``n_cells x n_genes`` unless stated."""

    cells: np.ndarray
    """Positions among the selected cells, ``n_cells``."""
    x: np.ndarray
    """The cells' own counts or values."""
    size: np.ndarray
    """Library size or registered size factor, which scales the rates, ``n_cells x 1``."""
    source: np.ndarray
    """Expected counts or values under the source condition."""
    target: np.ndarray
    """Expected counts or values under the target condition."""
    inverse_dispersion: np.ndarray | None
    """Under the target condition, ``1 x n_genes``; ``None`` if the likelihood has none."""
    zero_inflation: np.ndarray | None
    """Probability under the target condition; ``None`` if the likelihood has none."""
    source_sd: Any
    """Standard deviation of log-normalised values; ``None`` for counts."""
    target_sd: Any
    """The same under the target condition, ``1 x n_genes``."""


def predict(
    models: Sequence[BaseTRVAE], selection: Selection, batch_size: int | None
) -> np.ndarray | sparse.csr_matrix:
    """Draw the selected cells under the target condition, ``n_cells x n_genes`` in the user's order.

    Decoded expectations are averaged over the models.
    """
    first = models[0]
    blocks = []
    for minibatch in decode_both(models, selection, batch_size):
        predicted = first._drawn(minibatch, selection)
        predicted = first._as_registered(predicted.take(selection.gene_order, axis=1))
        blocks.append(sparse.csr_matrix(predicted) if first.data_is_sparse_ else predicted)
    return stacked(blocks)


def decode_both(
    models: Sequence[BaseTRVAE],
    selection: Selection,
    batch_size: int | None,
    draw: int | None = None,
) -> Iterator[Minibatch]:
    """Encode cells under the source and decode them under both conditions.

    With ``draw``, the number of a posterior draw of ``z`` and of the labels' response, models take
    turns; by default cells are decoded at the posterior mean and models are averaged.
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
    """Yield minibatches of the selected cells and what is inferred at the posterior mean."""
    loader = model._make_data_loader(
        selection.registered, indices=selection.indices, batch_size=batch_size
    )
    model.module.eval()
    for tensors in loader:
        with model.module.posterior_mean():
            inferred = model.module.inference(**model.module._get_inference_input(tensors))
        yield tensors, inferred


@torch.inference_mode()
def _decode_with(
    model: BaseTRVAE, selection: Selection, batch_size: int | None, draw: int | None
) -> Iterator[Minibatch]:
    module = model.module
    target_code = model.conditions.index(selection.target)
    deviations = {
        code: response.draw_deviation(np.random.default_rng((selection.seed, draw)))
        for code, response in selection.responses.items()
        if draw is not None
    }
    start = 0
    for tensors, inferred in encode(model, selection, batch_size):
        cells = np.arange(start, start + len(tensors[REGISTRY_KEYS.X_KEY]))
        start += len(cells)
        if draw is not None:
            qz = inferred["qz"]
            noise = normal_draws(selection.keys[cells], selection.seed, draw, qz.loc.shape[-1])
            inferred["z"] = qz.loc + qz.scale * torch.as_tensor(
                noise, dtype=qz.loc.dtype, device=qz.loc.device
            )
        inputs = module._get_generative_input(tensors, inferred)
        decoded = module.generative(**inputs)
        source = decoded["px"]
        target = module.generative(**inputs, transform_batch=target_code, base=decoded[BASE_KEY])[
            "px"
        ]
        source_mean, target_mean = _to_numpy(source.mean), _to_numpy(target.mean)
        source_code = tensors[REGISTRY_KEYS.BATCH_KEY].numpy().ravel()
        for code, response in selection.responses.items():
            if (rows := source_code == code).any():
                target_mean[rows] = response(
                    source_mean[rows], target_mean[rows], deviations.get(code)
                )
        size_factor = inputs["size_factor"]
        is_counts = module.is_count_model
        yield Minibatch(
            cells,
            tensors[REGISTRY_KEYS.X_KEY].numpy(),
            _to_numpy(inputs["library"].exp() if size_factor is None else size_factor),
            source_mean,
            target_mean,
            # All cells are under one condition.
            _to_numpy(target.theta[:1]) if hasattr(target, "theta") else None,
            _to_numpy(target.zi_probs) if hasattr(target, "zi_probs") else None,
            None if is_counts else _to_numpy(module.residual_sd(source)),
            None if is_counts else _to_numpy(module.residual_sd(target)[:1]),
        )


def _average(minibatches: tuple[Minibatch, ...]) -> Minibatch:
    """Average what the models differ in."""
    first, *others = minibatches
    if not others:
        return first

    def mean(name: str) -> Any:
        values: list[Any] = [getattr(minibatch, name) for minibatch in minibatches]
        return None if values[0] is None else np.mean(values, axis=0)

    differing = ("source", "target", "zero_inflation", "source_sd", "target_sd")
    averaged = first._replace(**{name: mean(name) for name in differing})
    if first.inverse_dispersion is None:
        return averaged
    # The variance is linear in the dispersion, not in its inverse.
    inverses: list[Any] = [minibatch.inverse_dispersion for minibatch in minibatches]
    dispersion = np.mean([1 / inverse for inverse in inverses], axis=0)
    return averaged._replace(inverse_dispersion=1 / dispersion)


def expected_expression(
    minibatch: Minibatch, estimate: Estimate, nonnegative: bool = False
) -> np.ndarray:
    """Expectation of :func:`drawn_expression`, ``n_cells x n_genes``."""
    m = minibatch
    if estimate == "decoded":
        return m.target
    if m.source_sd is None:
        return expected_counts(m.x, m.source, m.target)
    return expected_values(m.x, m.source, m.target, m.source_sd, m.target_sd, nonnegative)


def drawn_expression(
    minibatch: Minibatch, estimate: Estimate, uniform: np.ndarray, nonnegative: bool = False
) -> np.ndarray:
    """Draw counts or log-normalised values under the target condition, ``n_cells x n_genes``.

    ``uniform`` are variates in ``[0, 1)`` of that shape. Decoded log-normalised values are the
    mean, without noise.
    """
    m = minibatch
    if m.source_sd is not None:
        if estimate == "decoded":
            return m.target
        return draw_values(m.x, m.source, m.target, m.source_sd, m.target_sd, uniform, nonnegative)
    if estimate == "counterfactual":
        return draw_counts(m.x, m.source, m.target, m.inverse_dispersion, uniform)
    mean = m.target
    if m.zero_inflation is not None:
        # The lowest quantiles are the inflated zeros, the others those of the NB.
        share = np.maximum(1 - m.zero_inflation, 1e-12)
        mean = mean / share
        uniform = np.maximum(1 - (1 - uniform) / share, 0)
    return count_quantile(uniform, mean, m.inverse_dispersion)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().astype(np.float64)
