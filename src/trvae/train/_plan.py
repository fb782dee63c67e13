"""The training plan: loss, optimizer, learning-rate schedule and what is logged."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningDataModule
from scvi.train import TrainingPlan
from torch.optim.lr_scheduler import CosineAnnealingLR

from trvae._utils._arguments import (
    check_choice,
    check_from_0,
    check_positive_integer,
    is_number,
    join_names,
)
from trvae.module._distributed import processes

if TYPE_CHECKING:
    from scvi.module.base import BaseModuleClass


LRSchedule = Literal["constant", "cosine"]


# Arguments of the plan.
_NUMBERS_FROM_0 = {
    "lr", "eps", "weight_decay", "max_kl_weight", "min_kl_weight", "lr_factor", "lr_patience",
    "lr_threshold", "lr_min",
}  # fmt: skip


_WARMUPS = {"n_epochs_kl_warmup", "n_steps_kl_warmup"}


def check_training(
    max_epochs: int | None,
    batch_size: int,
    train_size: float | None,
    validation_size: float | None,
) -> None:
    """Raise a ``ValueError`` unless a model can be trained with these arguments of its method."""
    check_positive_integer("batch_size", batch_size)
    if max_epochs is not None:
        check_positive_integer("max_epochs", max_epochs)
    if train_size is not None and not (is_number(train_size) and 0 < train_size <= 1):
        raise ValueError(f"train_size={train_size!r} is not a number above 0 and up to 1.")
    if validation_size is not None:
        check_from_0("validation_size", validation_size)
    train_size = 0.9 if train_size is None else train_size
    if validation_size is not None and train_size + validation_size > 1:
        raise ValueError(
            f"train_size={train_size} and validation_size={validation_size} are more than all."
        )


def check_passed_on(
    plan_kwargs: Any, datasplitter_kwargs: Any, datamodule: Any, callbacks: Any
) -> None:
    """Raise a ``ValueError`` unless what scvi-tools and Lightning are given is of their types."""
    for argument, given in {
        "plan_kwargs": plan_kwargs,
        "datasplitter_kwargs": datasplitter_kwargs,
    }.items():
        if given is not None and not isinstance(given, dict):
            raise ValueError(f"{argument}={given!r} is not a dictionary of arguments.")
    if datamodule is not None and not isinstance(datamodule, LightningDataModule):
        raise ValueError(
            f"datamodule is a {type(datamodule).__name__}, but no LightningDataModule."
        )
    if callbacks is not None and not (
        isinstance(callbacks, list | tuple) and all(isinstance(c, Callback) for c in callbacks)
    ):
        raise ValueError(f"callbacks={callbacks!r} is not a list of Lightning's Callback objects.")


class TRVAETrainingPlan(TrainingPlan):
    """scvi-tools' plan; the metric ``objective`` is the loss with the final KL weight.

    Parameters
    ----------
    module
        The module to train.
    lr
        Learning rate.
    eps
        Adam's epsilon.
    weight_decay
        Adam's weight decay. It would also move weights that are meant to be frozen.
    max_kl_weight
        Weight of the KL divergence after the warm-up.
    lr_schedule
        Whether the learning rate stays ``"constant"``, or falls to 0 with a ``"cosine"`` over all
        minibatches of the training.
    **kwargs
        Passed to :class:`~scvi.train.TrainingPlan`.

    References
    ----------
    Loshchilov & Hutter, *ICLR* (2017), equation 5: the cosine, without restarts.
    """

    def __init__(
        self,
        module: BaseModuleClass,
        *,
        lr: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_kl_weight: float = 1.0,
        lr_schedule: LRSchedule = "constant",
        **kwargs,
    ):
        check_choice("lr_schedule", lr_schedule, get_args(LRSchedule))
        if lr_schedule != "constant" and kwargs.get("reduce_lr_on_plateau"):
            raise ValueError(
                f"reduce_lr_on_plateau=True is for lr_schedule='constant', not {lr_schedule!r}."
            )
        if unknown := set(kwargs) - set(inspect.signature(TrainingPlan).parameters):
            raise ValueError(
                f"plan_kwargs has {join_names(sorted(unknown))}, which are no arguments of "
                "scvi.train.TrainingPlan."
            )
        own = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "max_kl_weight": max_kl_weight}
        for name, given in (own | kwargs).items():
            if name in _NUMBERS_FROM_0 or (name in _WARMUPS and given is not None):
                check_from_0(name, given)
        super().__init__(
            module,
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            max_kl_weight=max_kl_weight,
            **kwargs,
        )
        self.lr_schedule = lr_schedule
        self.loss_kwargs["final_kl_weight"] = max_kl_weight
        self._sums: dict[str, dict[str, torch.Tensor | int]] = {"train": {}, "validation": {}}

    def on_train_start(self) -> None:
        """Let processes that share minibatches draw differently for their cells."""
        super().on_train_start()
        if processes().number > 1:
            torch.manual_seed(torch.initial_seed() + processes().rank)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of a minibatch; its terms are added up for the end of the epoch."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """As :meth:`training_step`."""
        self._step(batch, "validation")

    def on_train_epoch_end(self) -> None:
        """Log the training terms, averaged over cells."""
        self.log("kl_weight", float(self.loss_kwargs["kl_weight"]))
        self._log_means("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation terms, averaged over cells."""
        self._log_means("validation")

    def _step(self, batch: dict[str, torch.Tensor], mode: str) -> torch.Tensor:
        self.loss_kwargs["kl_weight"] = self.kl_weight
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        n_cells = output.n_obs_minibatch
        loss_name = "train_loss" if mode == "train" else "validation_loss"
        sums = {
            loss_name: output.loss.detach() * n_cells,
            f"reconstruction_loss_{mode}": output.reconstruction_loss_sum.detach(),
            f"kl_local_{mode}": output.kl_local_sum.detach(),
            **{f"{k}_{mode}": v * n_cells for k, v in output.extra_metrics.items()},
            "n_cells": n_cells,
        }
        so_far = self._sums[mode]
        for name, value in sums.items():
            so_far[name] = so_far[name] + value if name in so_far else value
        return output.loss

    def _log_means(self, mode: str) -> None:
        sums, self._sums[mode] = self._sums[mode], {}
        n_cells = sums.pop("n_cells")
        means = {name: value / n_cells for name, value in sums.items()}
        means[f"elbo_{mode}"] = means[f"reconstruction_loss_{mode}"] + means[f"kl_local_{mode}"]
        for name, value in means.items():
            self.log(name, value, prog_bar=name == "train_loss", sync_dist=self.use_sync_dist)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer and the schedule of its learning rate."""
        config = super().configure_optimizers()
        if self.lr_schedule == "cosine":
            n_minibatches = self.trainer.estimated_stepping_batches
            schedule = CosineAnnealingLR(config["optimizer"], int(n_minibatches))
            config["lr_scheduler"] = {"scheduler": schedule, "interval": "step"}
        return config

    def get_optimizer_creator(self):
        """Adam and AdamW in their fused form, which is several times faster on CPU and GPU."""
        classes = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
        if self.optimizer_name not in classes:
            return super().get_optimizer_creator()
        fused = getattr(self, "fused_optimizer", True) and self.device.type in ("cpu", "cuda")
        return lambda params: classes[self.optimizer_name](
            params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )
