"""The loss: reconstruction, KL divergence, and the MMD between conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput
from torch.distributions import kl_divergence

from trvae.module._distributed import gather_cells
from trvae.module._mmd import MMDReduction, multi_scale_mmd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    # For type checkers: the module that this is mixed into has everything.
    _Module: Any
else:
    _Module = object


MMDLayer = Literal["decoder", "latent", "both"]

FIRST_LAYER_KEY = "first_layer"

_COMPARED = {"decoder": [FIRST_LAYER_KEY], "latent": ["z"], "both": [FIRST_LAYER_KEY, "z"]}


class LossMixin(_Module):
    """The loss of :class:`BaseTRVAEModule`, and the cells that its MMD compares."""

    mmd_weight: float
    mmd_layer: MMDLayer
    mmd_within_labels: bool
    mmd_bandwidths: Sequence[float]
    mmd_reduction: MMDReduction
    _has_reference = False

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
            A minibatch, and the outputs of encoder and decoder for it.
        kl_weight
            Weight of the KL divergence in the loss.
        final_kl_weight
            The same after the warm-up.

        Returns
        -------
        The loss, a scalar; reconstruction and KL divergence of each cell, ``n_cells``; and the
        metrics ``mmd``, unweighted, and ``objective``, the loss with the final KL weight, which
        is comparable between epochs.
        """
        kl = kl_divergence(inference_outputs["qz"], generative_outputs["pz"]).sum(-1)
        log_prob = generative_outputs["px"].log_prob(tensors[REGISTRY_KEYS.X_KEY])
        reconstruction = -log_prob.sum(-1)
        mmd = self._mmd(tensors, inference_outputs["z"], generative_outputs[FIRST_LAYER_KEY])

        def objective(weight):
            return (reconstruction + weight * kl).mean() + self.mmd_weight * mmd

        return LossOutput(
            loss=objective(kl_weight),
            reconstruction_loss=reconstruction,
            kl_local={"kl_divergence_z": kl},
            extra_metrics={
                "mmd": mmd.detach(),
                "objective": objective(final_kl_weight).detach(),
            },
        )

    def compare_with(self, reference: Mapping[str, np.ndarray]) -> None:
        """Add a sample of reference cells to every minibatch that the MMD compares.

        Parameters
        ----------
        reference
            Codes ``condition`` and ``label`` of ``n`` cells, ``n``; draws of ``z``,
            ``n x n_latent``; and their activations ``first_layer``, ``n x first width``.
        """
        for name in ("condition", "label", "z", FIRST_LAYER_KEY):
            values = torch.as_tensor(reference[name])
            self.register_buffer(f"reference_{name}", values, persistent=False)
        self._has_reference = True

    def _mmd(
        self, tensors: dict[str, torch.Tensor], z: torch.Tensor, first_layer: torch.Tensor
    ) -> torch.Tensor:
        compared = {"z": z, FIRST_LAYER_KEY: first_layer}
        cells = {name: compared[name] for name in _COMPARED[self.mmd_layer]}
        cells["condition"] = tensors[REGISTRY_KEYS.BATCH_KEY].flatten()
        if self.mmd_within_labels:
            cells["label"] = tensors[REGISTRY_KEYS.LABELS_KEY].flatten()
        if self.training:  # In evaluation, other processes may have no minibatch to exchange.
            cells = {name: gather_cells(values) for name, values in cells.items()}
        if self._has_reference:
            cells = self._with_reference(cells)
        groups = cells.pop("condition"), cells.pop("label", None)
        # With a weight of 0, the MMD is only monitored.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.mmd_weight > 0):
            return torch.stack(
                [
                    multi_scale_mmd(y, *groups, self.mmd_bandwidths, self.mmd_reduction)
                    for y in cells.values()
                ]
            ).sum()

    def _with_reference(self, cells: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Append as many reference cells, drawn at random, as there are cells."""
        known = self.reference_condition
        chosen = torch.randint(len(known), cells["condition"].shape, device=known.device)

        def with_reference(name: str, values: torch.Tensor) -> torch.Tensor:
            reference = getattr(self, f"reference_{name}")
            return torch.cat([values, reference[chosen].to(values.dtype)])

        return {name: with_reference(name, values) for name, values in cells.items()}
