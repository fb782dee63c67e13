"""What the networks of expression and of images share: inference, loss and draws."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import BaseMinifiedModeModuleClass, LossOutput, auto_move_data
from torch import nn
from torch.distributions import kl_divergence

from trvae.module._distributed import gather_cells
from trvae.module._layers import Covariates
from trvae.module._likelihood import Normal
from trvae.module._mmd import multi_scale_mmd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from torch.distributions import Distribution

    from trvae.module._layers import DecoderOutput


MMDLayer = Literal["decoder", "latent", "both"]


FIRST_LAYER_KEY = "first_layer"


BASE_KEY = "base"


# Where the flattened minibatch is not 0, if the encoder has found out.
_NONZERO_KEY = "nonzero"


# An all-zero cell would have a log library size of minus infinity.
_SMALLEST_LIBRARY = 1e-6


class Encoded(NamedTuple):
    """What an encoder makes of a minibatch."""

    mean: torch.Tensor
    """Of ``q(z | x)``, ``n_cells x n_latent``."""
    scale: torch.Tensor
    """Its standard deviation, of the same shape."""
    nonzero: torch.Tensor | None = None
    """Where the flattened minibatch is not 0, if that was found out."""


class BaseTRVAEModule(BaseMinifiedModeModuleClass):
    r"""A conditional VAE whose first decoder layer is matched across conditions.

    Subclasses have an ``encoder``, a ``decoder`` that gives a
    :class:`~trvae._nn.DecoderOutput`, and a likelihood. The loss is

    .. math::

        \frac{1}{n} \sum_{\text{cells}} \left[ -\sum_g \log p(x_g \mid z, c)
        + w_{KL}\, \mathrm{KL}(q(z \mid x, c) \,\Vert\, \mathcal{N}(0, 1)) \right]
        + w_{MMD} \sum_{i<j} \mathrm{MMD}^2(y_i, y_j)

    with :math:`y_i` the activations of the first decoder layer of the cells of condition
    :math:`i`.

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
    mmd_weight, mmd_layer, mmd_within_labels, mmd_bandwidths
        See :class:`~trvae.TRVAE`.

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
    ):
        super().__init__()
        self.n_input = n_input
        self.n_batch = n_batch
        self.n_labels = n_labels
        self.n_latent = n_latent
        # scvi-tools asks for it: the library size is never a latent variable here.
        self.use_observed_lib_size = True
        self.mmd_weight = mmd_weight
        self.mmd_layer = mmd_layer
        self.mmd_within_labels = mmd_within_labels
        self.mmd_bandwidths = tuple(mmd_bandwidths)
        self._posterior_mean = False
        self._latent_noise: np.random.Generator | None = None
        self._has_reference = False

    @property
    def is_count_model(self) -> bool:
        """Whether the likelihood is one of counts."""
        return False

    @property
    def likelihood_setting(self) -> dict[str, str]:
        """Name and value of the setting that a model of this network has."""
        raise NotImplementedError

    def _encode(self, x: torch.Tensor, covariates: Covariates) -> Encoded:
        """Encode a minibatch as it was registered."""
        raise NotImplementedError

    def _likelihood(
        self, decoded: DecoderOutput, log_size: torch.Tensor, condition: torch.Tensor
    ) -> Distribution:
        """Likelihood of the values as they were registered."""
        raise NotImplementedError

    def residual_sd(self, px: Distribution) -> torch.Tensor:
        """Spread of values about the mean, by which a counterfactual scales what it carries over.

        Of one row if it is the same for all cells.
        """
        return px.stddev

    @contextmanager
    def posterior_mean(self, active: bool = True) -> Iterator[None]:
        """Let single draws of ``z`` be its posterior mean within the context."""
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
        """Draw ``z`` from a stream of its own, cell by cell, whatever the minibatch size.

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

    def train_new_categories_only(self, n_rows: Mapping[str, int]) -> None:
        """Freeze all weights but the rows that the categories' tables have more.

        Parameters
        ----------
        n_rows
            Of each weight, how many rows it had in the module that this one was extended from. New
            categories are the last.
        """
        for name, parameter in self.named_parameters():
            n_known = n_rows[name]
            parameter.requires_grad = len(parameter) > n_known
            if parameter.requires_grad:
                parameter.register_hook(functools.partial(_without_rows, n_known))
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.momentum = 0.0

    # ------------------------------------------------------------------ inference

    def _get_inference_input(
        self, tensors: dict[str, torch.Tensor], full_forward_pass: bool = False
    ) -> dict[str, torch.Tensor | None]:
        if REGISTRY_KEYS.LATENT_QZM_KEY in tensors and not full_forward_pass:
            return {
                MODULE_KEYS.QZM_KEY: tensors[REGISTRY_KEYS.LATENT_QZM_KEY],
                MODULE_KEYS.QZV_KEY: tensors[REGISTRY_KEYS.LATENT_QZV_KEY],
                REGISTRY_KEYS.OBSERVED_LIB_SIZE: tensors[REGISTRY_KEYS.OBSERVED_LIB_SIZE],
            }
        return {
            MODULE_KEYS.X_KEY: tensors[REGISTRY_KEYS.X_KEY],
            MODULE_KEYS.BATCH_INDEX_KEY: tensors[REGISTRY_KEYS.BATCH_KEY],
            MODULE_KEYS.CONT_COVS_KEY: tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            MODULE_KEYS.CAT_COVS_KEY: tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
        }

    @auto_move_data
    def _regular_inference(
        self,
        x: torch.Tensor,
        batch_index: torch.Tensor,
        cont_covs: torch.Tensor | None = None,
        cat_covs: torch.Tensor | None = None,
        n_samples: int = 1,
    ) -> dict[str, torch.Tensor | Distribution | None]:
        encoded = self._encode(x, covariates_of(batch_index, cat_covs, cont_covs))
        library = x.sum(-1, keepdim=True)
        outputs = self._inference_outputs(encoded.mean, encoded.scale, library, n_samples)
        return outputs | {_NONZERO_KEY: encoded.nonzero}

    @auto_move_data
    def _cached_inference(
        self,
        qzm: torch.Tensor,
        qzv: torch.Tensor,
        observed_lib_size: torch.Tensor,
        n_samples: int = 1,
    ) -> dict[str, torch.Tensor | Distribution | None]:
        return self._inference_outputs(qzm, qzv.sqrt(), observed_lib_size, n_samples)

    def _inference_outputs(self, mean, scale, library, n_samples):
        qz = Normal(mean, scale)
        if n_samples == 1 and self._posterior_mean:
            z = mean
        elif self._latent_noise is None:
            z = qz.rsample((n_samples,) if n_samples > 1 else ())
        else:
            n_cells, n_latent = mean.shape
            noise = self._latent_noise.standard_normal((n_cells, n_samples, n_latent))
            noise = torch.as_tensor(noise, dtype=mean.dtype, device=mean.device)
            z = mean + scale * noise.swapaxes(0, 1)
            z = z if n_samples > 1 else z[0]
        return {
            MODULE_KEYS.Z_KEY: z,
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: None,
            MODULE_KEYS.LIBRARY_KEY: library.clamp(min=_SMALLEST_LIBRARY).log(),
        }

    # ----------------------------------------------------------------- generation

    def _get_generative_input(
        self, tensors: dict[str, torch.Tensor], inference_outputs: dict
    ) -> dict[str, torch.Tensor | None]:
        return {
            MODULE_KEYS.Z_KEY: inference_outputs[MODULE_KEYS.Z_KEY],
            MODULE_KEYS.LIBRARY_KEY: inference_outputs[MODULE_KEYS.LIBRARY_KEY],
            MODULE_KEYS.BATCH_INDEX_KEY: tensors[REGISTRY_KEYS.BATCH_KEY],
            MODULE_KEYS.CONT_COVS_KEY: tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            MODULE_KEYS.CAT_COVS_KEY: tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            # Data modules have one of their own, unasked.
            MODULE_KEYS.SIZE_FACTOR_KEY: tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
            if self.use_size_factor_key
            else None,
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
        base: DecoderOutput | None = None,
    ) -> dict[str, torch.Tensor | Distribution | DecoderOutput | None]:
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
            Registered size factor, ``n_cells x 1``.
        transform_batch
            Code of a condition to decode all cells under, in place of ``batch_index``.
        base
            What was returned under ``"base"`` for the same ``z`` and covariates, which saves
            decoding again what does not depend on the condition.

        Returns
        -------
        The likelihood under ``"px"``, the prior under ``"pz"``, the activations of the first
        decoder layer under ``"first_layer"`` and the additive decoder's base under ``"base"``.
        """
        if transform_batch is not None:
            batch_index = torch.full_like(batch_index, int(transform_batch))
        covariates = covariates_of(batch_index, cat_covs, cont_covs)
        decoded = self.decoder(z, covariates, base)
        log_size = library if size_factor is None else size_factor.log()
        return {
            MODULE_KEYS.PX_KEY: self._likelihood(decoded, log_size, covariates.condition),
            MODULE_KEYS.PZ_KEY: Normal(torch.zeros_like(z), torch.ones_like(z)),
            FIRST_LAYER_KEY: decoded.first_layer,
            BASE_KEY: decoded.base,
        }

    # ----------------------------------------------------------------------- loss

    def loss(
        self,
        tensors: dict[str, torch.Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: torch.Tensor | float = 1.0,
        final_kl_weight: float = 1.0,
    ) -> LossOutput:
        """Loss of a minibatch.

        Parameters
        ----------
        tensors, inference_outputs, generative_outputs
            A minibatch, and what the encoder and the decoder made of it.
        kl_weight
            Weight of the KL divergence in the loss.
        final_kl_weight
            The same once the warm-up is over.

        Returns
        -------
        The loss, a scalar; reconstruction and KL divergence of each cell, ``n_cells``; and the
        metrics ``mmd``, unweighted, and ``objective``, the loss with the final KL weight, which
        can be compared between epochs.
        """
        z, qz = inference_outputs[MODULE_KEYS.Z_KEY], inference_outputs[MODULE_KEYS.QZ_KEY]
        kl = kl_divergence(qz, generative_outputs[MODULE_KEYS.PZ_KEY]).sum(-1)
        px = generative_outputs[MODULE_KEYS.PX_KEY]
        known = {"nonzero": inference_outputs.get(_NONZERO_KEY)} if self.is_count_model else {}
        reconstruction = -px.log_prob(tensors[REGISTRY_KEYS.X_KEY], **known).sum(-1)
        mmd = self._mmd(tensors, z, generative_outputs[FIRST_LAYER_KEY])

        def objective(weight):
            return (reconstruction + weight * kl).mean() + self.mmd_weight * mmd

        return LossOutput(
            loss=objective(kl_weight),
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_Z_KEY: kl},
            extra_metrics={
                "mmd": mmd.detach(),
                "objective": objective(final_kl_weight).detach(),
            },
        )

    def _mmd(self, tensors, z, first_layer) -> torch.Tensor:
        def of_all_processes(cells):
            # In evaluation, not all of them need come this way.
            return gather_cells(cells) if self.training else cells

        condition = of_all_processes(tensors[REGISTRY_KEYS.BATCH_KEY]).flatten()
        label = None
        if self.mmd_within_labels:
            label = of_all_processes(tensors[REGISTRY_KEYS.LABELS_KEY]).flatten()
        compared = {FIRST_LAYER_KEY: of_all_processes(first_layer), "z": of_all_processes(z)}
        if self._has_reference:
            chosen = torch.randint(len(self.reference_condition), condition.shape)
            condition = self._with_reference("condition", condition, chosen)
            if label is not None:
                label = self._with_reference("label", label, chosen)
            compared = {
                name: self._with_reference(name, cells, chosen) for name, cells in compared.items()
            }
        layers = {"decoder": [FIRST_LAYER_KEY], "latent": ["z"], "both": [FIRST_LAYER_KEY, "z"]}
        # Without a weight it is only watched.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.mmd_weight > 0):
            return torch.stack(
                [
                    multi_scale_mmd(compared[name], condition, label, self.mmd_bandwidths)
                    for name in layers[self.mmd_layer]
                ]
            ).sum()

    def compare_with(self, reference: Mapping[str, np.ndarray]) -> None:
        """Let the MMD compare every minibatch with a sample of other cells, too.

        Parameters
        ----------
        reference
            Of ``n`` cells the codes ``condition`` and ``label``, ``n``; draws of ``z``,
            ``n x n_latent``; and the activations ``first_layer`` that they are decoded to,
            ``n x first width``.
        """
        for name in ("condition", "label", "z", FIRST_LAYER_KEY):
            values = torch.as_tensor(reference[name])
            self.register_buffer(f"reference_{name}", values, persistent=False)
        self._has_reference = True

    def _with_reference(self, name, cells, chosen) -> torch.Tensor:
        reference = getattr(self, f"reference_{name}")
        return torch.cat([cells, reference[chosen.to(reference.device)].to(cells.dtype)])

    # ------------------------------------------------------- for scvi-tools' mixins

    @torch.inference_mode()
    def sample(
        self,
        tensors: dict[str, torch.Tensor],
        n_samples: int = 1,
        generative_kwargs: dict | None = None,
    ) -> torch.Tensor:
        """Draw from the posterior predictive distribution.

        Parameters
        ----------
        tensors
            A minibatch.
        n_samples
            Number of draws of ``z``, each with one draw of the expression.
        generative_kwargs
            Passed to :meth:`generative`.

        Returns
        -------
        On the CPU, ``n_cells x n_genes``, or ``n_cells x n_genes x n_samples`` if there are
        several.
        """
        _, generative_outputs = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        drawn = generative_outputs[MODULE_KEYS.PX_KEY].sample()
        return (drawn.permute(1, 2, 0) if n_samples > 1 else drawn).cpu()

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, torch.Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 1,
    ) -> torch.Tensor | float:
        r"""Importance-weighted estimate of :math:`\log p(x)`.

        Parameters
        ----------
        tensors
            A minibatch.
        n_mc_samples
            Number of draws of ``z``.
        return_mean
            Whether to average over cells.
        n_mc_samples_per_pass
            How many draws are held in memory at once.

        Returns
        -------
        A number, or one for each cell, ``n_cells``.

        References
        ----------
        Burda, Grosse & Salakhutdinov, *ICLR* (2016): importance-weighted autoencoders.
        """
        log_weights: list[torch.Tensor] = []
        while (n_left := n_mc_samples - sum(len(w) for w in log_weights)) > 0:
            inference_outputs, generative_outputs = self.forward(
                tensors,
                inference_kwargs={"n_samples": min(n_mc_samples_per_pass, n_left)},
                get_inference_input_kwargs={"full_forward_pass": True},
                compute_loss=False,
            )
            z = inference_outputs[MODULE_KEYS.Z_KEY]
            log_weight = (
                generative_outputs[MODULE_KEYS.PX_KEY]
                .log_prob(tensors[REGISTRY_KEYS.X_KEY])
                .sum(-1)
                + generative_outputs[MODULE_KEYS.PZ_KEY].log_prob(z).sum(-1)
                - inference_outputs[MODULE_KEYS.QZ_KEY].log_prob(z).sum(-1)
            )
            log_weights.append(log_weight.reshape(-1, log_weight.shape[-1]))
        weights = torch.cat(log_weights)
        log_marginal = torch.logsumexp(weights, 0) - torch.log(torch.tensor(float(len(weights))))
        return log_marginal.mean().item() if return_mean else log_marginal.cpu()


def covariates_of(
    batch_index: torch.Tensor, cat_covs: torch.Tensor | None, cont_covs: torch.Tensor | None
) -> Covariates:
    """Covariates from the columns of a minibatch."""
    return Covariates(
        batch_index.flatten().long(),
        None if cat_covs is None else cat_covs.long(),
        cont_covs,
    )


def _without_rows(n_rows: int, grad: torch.Tensor) -> torch.Tensor:
    """Gradient that leaves the first rows of a table where they are."""
    grad = grad.clone()
    grad[:n_rows] = 0
    return grad
