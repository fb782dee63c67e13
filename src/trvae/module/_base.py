"""Inference and generation, shared by the networks of expression and of images."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import Normal
from scvi.module.base import BaseMinifiedModeModuleClass, auto_move_data
from torch import nn

from trvae.module._covariates import Covariates
from trvae.module._loss import FIRST_LAYER_KEY, LossMixin, MMDLayer
from trvae.module._posterior import PosteriorMixin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.distributions import Distribution

    from trvae.module._decoders import DecoderOutput
    from trvae.module._mmd import MMDReduction


# The log library size of a cell without counts would be minus infinity.
_SMALLEST_LIBRARY = 1e-6


class Expectation(NamedTuple):
    """What the decoder expects of cells."""

    mean: torch.Tensor
    """Mean of the likelihood, ``n_cells x n_input``."""
    zero_inflation: torch.Tensor | None
    """Probability of an inflated zero, of the same shape; ``None`` if there are no such zeros."""
    base: DecoderOutput | None
    """Output of the additive decoder without the condition's effect."""


class BaseTRVAEModule(LossMixin, PosteriorMixin, BaseMinifiedModeModuleClass):
    r"""A conditional VAE whose first decoder layer is matched across conditions.

    With the posterior :math:`q`, a normal distribution, and the decoder's likelihood :math:`p` of
    a cell :math:`x` with condition (and covariates) :math:`c`, the loss is

    .. math::

        \frac{1}{n} \sum_{\text{cells}} \left[ -\sum_g \log p(x_g \mid z, c)
        + w_{KL}\, \mathrm{KL}(q(z \mid x, c) \,\Vert\, \mathcal{N}(0, 1)) \right]
        + w_{MMD}\, \overline{\mathrm{MMD}^2(y_i, y_j)}

    where :math:`y_i` are the activations of the first decoder layer (``mmd_layer="decoder"``) of
    the cells of condition :math:`i`, and the mean is over pairs of conditions (the sum with
    ``mmd_reduction="sum"``); see :func:`multi_scale_mmd`.

    Subclasses set an ``encoder`` and a ``decoder``, which returns a ``DecoderOutput``, and
    implement ``_encode`` and ``_likelihood``.

    Parameters
    ----------
    n_input
        Number of genes, or of pixels times channels.
    n_batch
        Number of conditions, which scvi-tools registers as batches.
    n_labels
        Number of labels.
    n_latent
        Size of ``z``.
    mmd_weight, mmd_layer, mmd_within_labels, mmd_bandwidths, mmd_reduction
        See :class:`~trvae.TRVAE`: weight of the MMD, what it compares and how.

    References
    ----------
    Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 2.
    """

    decoder: nn.Module
    use_size_factor_key = False

    def __init__(
        self,
        n_input: int,
        n_batch: int,
        n_labels: int,
        *,
        n_latent: int,
        mmd_weight: float,
        mmd_layer: MMDLayer,
        mmd_within_labels: bool,
        mmd_bandwidths: Sequence[float],
        mmd_reduction: MMDReduction,
    ):
        super().__init__()
        self.n_input = n_input
        self.n_batch = n_batch
        self.n_labels = n_labels
        self.n_latent = n_latent
        # For scvi-tools: the library size is never a latent variable here.
        self.use_observed_lib_size = True
        self.mmd_weight = mmd_weight
        self.mmd_layer = mmd_layer
        self.mmd_within_labels = mmd_within_labels
        self.mmd_bandwidths = tuple(mmd_bandwidths)
        self.mmd_reduction = mmd_reduction
        self._posterior_mean = False
        self._known_rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._latent_noise: np.random.Generator | None = None

    @property
    def is_count_model(self) -> bool:
        """Whether the likelihood is one of counts."""
        return False

    @property
    def likelihood_setting(self) -> dict[str, str]:
        """Name and value of the argument that chose the likelihood."""
        raise NotImplementedError

    def _encode(
        self, x: torch.Tensor, covariates: Covariates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of ``q(z | x)``, ``n_cells x n_latent``."""
        raise NotImplementedError

    def _likelihood(
        self, decoded: DecoderOutput, log_size: torch.Tensor, condition: torch.Tensor
    ) -> Distribution:
        """Likelihood of the registered values, ``... x n_cells x n_input``."""
        raise NotImplementedError

    def _mean(
        self, decoded: DecoderOutput, size: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mean of :meth:`_likelihood`, and the probability of an inflated zero if it has one."""
        raise NotImplementedError

    def spread(self, condition: torch.Tensor) -> torch.Tensor | None:
        """Inverse dispersion of counts, or standard deviation by which residuals are scaled.

        Parameters
        ----------
        condition
            Codes of conditions, ``n_cells``.

        Returns
        -------
        ``n_cells x n_input``, or a single row that all cells share; ``None`` if the likelihood has
        no such parameter.
        """
        raise NotImplementedError

    @contextmanager
    def posterior_mean(self, active: bool = True) -> Iterator[None]:
        """Replace single draws of ``z`` by the posterior mean within the context."""
        before, self._posterior_mean = self._posterior_mean, active
        try:
            yield
        finally:
            self._posterior_mean = before

    @property
    def has_latent_draws(self) -> bool:
        """Whether :meth:`latent_draws` is active."""
        return self._latent_noise is not None

    @contextmanager
    def latent_draws(self, seed: int) -> Iterator[None]:
        """Draw ``z`` cell by cell from a separate stream, independent of the minibatch size.

        Parameters
        ----------
        seed
            Seed of the stream.
        """
        self._latent_noise = np.random.default_rng(seed)
        try:
            yield
        finally:
            self._latent_noise = None

    def match_means(self, tensors: dict[str, torch.Tensor]) -> None:
        """Let an untrained network start from the mean of a minibatch, where that helps."""

    def train_new_categories_only(self, n_rows: Mapping[str, int]) -> None:
        """Freeze all weights except the rows of new categories.

        Parameters
        ----------
        n_rows
            Number of rows that each weight had in the reference module. New categories are the
            last rows.
        """
        self.requires_grad_(False)
        self._known_rows = []
        for name, layer in self.named_modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.momentum = 0.0
            elif isinstance(layer, nn.Embedding):
                table, n_known = layer.weight, n_rows[f"{name}.weight"]
                if len(table) > n_known:
                    table.requires_grad = True
                    table.register_hook(functools.partial(_without_rows, n_known))
                    self._known_rows.append((table, table.detach()[:n_known].clone()))

    @torch.no_grad()
    def restore_known_rows(self) -> None:
        """Undo what an optimizer did to the rows of known categories.

        Weight decay moves them, although they have no gradient.
        """
        self._known_rows = [(table, rows.to(table.device)) for table, rows in self._known_rows]
        for table, rows in self._known_rows:
            table[: len(rows)] = rows

    # ------------------------------------------------------------------ inference

    def forward(self, tensors: dict[str, torch.Tensor], *args, **kwargs) -> Any:
        """See scvi-tools' method; values take the type of the weights, such as float64.

        Parameters
        ----------
        tensors
            A minibatch.
        *args, **kwargs
            Passed to :meth:`scvi.module.base.BaseModuleClass.forward`.
        """
        return super().forward(self._in_type_of_weights(tensors), *args, **kwargs)

    def _in_type_of_weights(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        dtype = next(self.parameters()).dtype
        return {
            # Data modules have something else where the cells have no labels.
            name: values.to(dtype)
            if isinstance(values, torch.Tensor) and values.is_floating_point()
            else values
            for name, values in tensors.items()
        }

    def _get_inference_input(
        self, tensors: dict[str, torch.Tensor], full_forward_pass: bool = False
    ) -> dict[str, torch.Tensor | None]:
        tensors = self._in_type_of_weights(tensors)
        if REGISTRY_KEYS.LATENT_QZM_KEY in tensors and not full_forward_pass:
            return {
                "qzm": tensors[REGISTRY_KEYS.LATENT_QZM_KEY],
                "qzv": tensors[REGISTRY_KEYS.LATENT_QZV_KEY],
                REGISTRY_KEYS.OBSERVED_LIB_SIZE: tensors[REGISTRY_KEYS.OBSERVED_LIB_SIZE],
            }
        return {"x": tensors[REGISTRY_KEYS.X_KEY], **_covariate_columns(tensors)}

    @auto_move_data
    def _regular_inference(
        self,
        x: torch.Tensor,
        batch_index: torch.Tensor,
        cont_covs: torch.Tensor | None = None,
        cat_covs: torch.Tensor | None = None,
        n_samples: int = 1,
    ) -> dict[str, torch.Tensor | Distribution | None]:
        covariates = Covariates.from_columns(batch_index, cat_covs, cont_covs)
        mean, scale = self._encode(x, covariates)
        return self._inference_outputs(mean, scale, x.sum(-1, keepdim=True), n_samples)

    @auto_move_data
    def _cached_inference(
        self,
        qzm: torch.Tensor,
        qzv: torch.Tensor,
        observed_lib_size: torch.Tensor,
        n_samples: int = 1,
    ) -> dict[str, torch.Tensor | Distribution | None]:
        return self._inference_outputs(qzm, qzv.sqrt(), observed_lib_size, n_samples)

    def _inference_outputs(
        self, mean: torch.Tensor, scale: torch.Tensor, library: torch.Tensor, n_samples: int
    ) -> dict[str, torch.Tensor | Distribution | None]:
        qz = Normal(mean, scale, validate_args=False)
        if n_samples == 1 and self._posterior_mean:
            z = mean
        elif self._latent_noise is None:
            z = qz.rsample((n_samples,) if n_samples > 1 else ())
        else:
            n_cells, n_latent = mean.shape
            noise = self._latent_noise.standard_normal((n_cells, n_samples, n_latent))
            noise = noise.swapaxes(0, 1) if n_samples > 1 else noise[:, 0]
            z = mean + scale * torch.as_tensor(noise, dtype=mean.dtype, device=mean.device)
        return {
            "z": z,
            "qz": qz,
            "ql": None,
            "library": library.clamp(min=_SMALLEST_LIBRARY).log(),
        }

    # ----------------------------------------------------------------- generation

    def _get_generative_input(
        self, tensors: dict[str, torch.Tensor], inference_outputs: dict
    ) -> dict[str, torch.Tensor | None]:
        tensors = self._in_type_of_weights(tensors)
        # Data modules have a size factor even if none was registered.
        size_factor = (
            tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY) if self.use_size_factor_key else None
        )
        return {
            "z": inference_outputs["z"],
            "library": inference_outputs["library"],
            "size_factor": size_factor,
            **_covariate_columns(tensors),
        }

    @auto_move_data
    def generative(
        self,
        z: torch.Tensor,
        library: torch.Tensor,
        batch_index: torch.Tensor,
        cont_covs: torch.Tensor | None = None,
        cat_covs: torch.Tensor | None = None,
        size_factor: torch.Tensor | None = None,
        transform_batch: int | None = None,
    ) -> dict[str, torch.Tensor | Distribution]:
        """Decode ``z``.

        Parameters
        ----------
        z
            ``n_cells x n_latent``, or ``n_samples x n_cells x n_latent``.
        library
            Log library size, ``n_cells x 1``.
        batch_index
            Codes of the condition to decode under, ``n_cells x 1``.
        cont_covs, cat_covs
            Covariates, ``n_cells x n_covariates``.
        size_factor
            Registered size factor, ``n_cells x 1``, in place of the library size.
        transform_batch
            Code of a condition to decode all cells under, in place of ``batch_index``.

        Returns
        -------
        The likelihood ``"px"``, the prior ``"pz"``, and the activations ``"first_layer"`` of the
        first decoder layer.
        """
        if transform_batch is not None:
            batch_index = torch.full_like(batch_index, int(transform_batch))
        covariates = Covariates.from_columns(batch_index, cat_covs, cont_covs)
        decoded = self.decoder(z, covariates)
        log_size = library if size_factor is None else size_factor.log()
        return {
            "px": self._likelihood(decoded, log_size, covariates.condition),
            "pz": Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False),
            FIRST_LAYER_KEY: decoded.first_layer,
        }

    def expectation(
        self,
        z: torch.Tensor,
        library: torch.Tensor,
        batch_index: torch.Tensor,
        cont_covs: torch.Tensor | None = None,
        cat_covs: torch.Tensor | None = None,
        size_factor: torch.Tensor | None = None,
        base: DecoderOutput | None = None,
    ) -> Expectation:
        """Decode ``z`` faster than :meth:`generative`, without making a distribution.

        Parameters
        ----------
        z, library, batch_index, cont_covs, cat_covs, size_factor
            See :meth:`generative`: cells, and conditions to decode under, on the module's device.
        base
            :attr:`Expectation.base` of the same cells, so that what does not depend on the
            condition is not decoded again.
        """
        decoded = self.decoder(z, Covariates.from_columns(batch_index, cat_covs, cont_covs), base)
        size = library.exp() if size_factor is None else size_factor
        return Expectation(*self._mean(decoded, size), decoded.base)


def _covariate_columns(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Condition and covariates of a minibatch, under the names of scvi-tools' arguments."""
    return {
        "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
        "cont_covs": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
        "cat_covs": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
    }


def _without_rows(n_rows: int, grad: torch.Tensor) -> torch.Tensor:
    """Gradient with which the first rows of a table stay as they are."""
    grad = grad.clone()
    grad[:n_rows] = 0
    return grad
