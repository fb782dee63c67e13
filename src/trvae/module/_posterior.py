"""Posterior predictive draws and the marginal likelihood, which scvi-tools' mixins ask for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import auto_move_data

if TYPE_CHECKING:
    # For type checkers: the module that this is mixed into has everything.
    _Module: Any
else:
    _Module = object


class PosteriorMixin(_Module):
    """Draws of expression, and the probability of cells under the model."""

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
        On the CPU, ``n_cells x n_genes``, or ``n_cells x n_genes x n_samples`` for several draws.
        """
        _, generative_outputs = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        drawn = generative_outputs["px"].sample()
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

        .. math::

            \log \frac{1}{S} \sum_{s=1}^S \frac{p(x \mid z_s)\, p(z_s)}{q(z_s \mid x)},
            \qquad z_s \sim q(z \mid x)

        Parameters
        ----------
        tensors
            A minibatch.
        n_mc_samples
            Number :math:`S` of draws of ``z``.
        return_mean
            Whether to average over cells.
        n_mc_samples_per_pass
            Number of draws held in memory at once.

        Returns
        -------
        The mean over cells, or one value per cell, ``n_cells``.

        References
        ----------
        Burda, Grosse & Salakhutdinov, *ICLR* (2016): importance-weighted autoencoders.
        """
        log_weights = []
        for start in range(0, n_mc_samples, n_mc_samples_per_pass):
            n_draws = min(n_mc_samples_per_pass, n_mc_samples - start)
            inferred, generated = self.forward(
                tensors,
                inference_kwargs={"n_samples": n_draws},
                get_inference_input_kwargs={"full_forward_pass": True},
                compute_loss=False,
            )
            z = inferred["z"]
            log_weight = (
                generated["px"].log_prob(tensors[REGISTRY_KEYS.X_KEY]).sum(-1)
                + generated["pz"].log_prob(z).sum(-1)
                - inferred["qz"].log_prob(z).sum(-1)
            )
            log_weights.append(log_weight.reshape(n_draws, -1))
        log_marginal = torch.logsumexp(torch.cat(log_weights), 0) - math.log(n_mc_samples)
        return log_marginal.mean().item() if return_mean else log_marginal.cpu()
