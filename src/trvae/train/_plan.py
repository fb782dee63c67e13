"""The training plan: loss, optimizer, learning-rate schedule and what is logged."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Literal

import torch
from scvi.train import TrainingPlan
from torch.optim.lr_scheduler import CosineAnnealingLR

from trvae._utils._arguments import (
    NONE,
    NONNEGATIVE_NUMBER,
    check_arguments,
    choice_of,
    join_names,
)
from trvae.data._on_device import gathered
from trvae.module._distributed import processes
from trvae.train._graphs import CapturedSteps, can_be_captured, fixed_state, make_capturable

if TYPE_CHECKING:
    from scvi.module.base import BaseModuleClass


LRSchedule = Literal["constant", "cosine"]


_RULES = {
    "lr_schedule": choice_of(LRSchedule),
    **dict.fromkeys(
        (
            "lr", "eps", "weight_decay", "max_kl_weight", "min_kl_weight", "lr_factor",
            "lr_patience", "lr_threshold", "lr_min",
        ),
        NONNEGATIVE_NUMBER,
    ),
    **dict.fromkeys(("n_epochs_kl_warmup", "n_steps_kl_warmup"), NONNEGATIVE_NUMBER | NONE),
}  # fmt: skip


class TRVAETrainingPlan(TrainingPlan):
    """scvi-tools' training plan with another default optimizer and metrics averaged over cells.

    The metric ``objective`` is the loss with the final KL weight, so that epochs of the warm-up
    can be compared with later ones.

    Parameters
    ----------
    module
        The module to train.
    lr
        Learning rate.
    eps
        Adam's epsilon.
    weight_decay
        Adam's weight decay. It also acts on weights that are meant to be frozen.
    max_kl_weight
        Weight of the KL divergence after the warm-up.
    lr_schedule
        Whether the learning rate stays ``"constant"``, or falls to 0 over all minibatches of the
        training like a ``"cosine"``.
    **kwargs
        Passed to :class:`~scvi.train.TrainingPlan`.

    Raises
    ------
    ValueError
        If a number is negative or not finite, ``lr_schedule`` is unknown or combined with
        ``reduce_lr_on_plateau``, or scvi-tools' plan has no such argument.

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
        given = locals() | kwargs
        check_arguments(given, {name: _RULES[name] for name in _RULES if name in given})
        if lr_schedule != "constant" and kwargs.get("reduce_lr_on_plateau"):
            raise ValueError(
                f"reduce_lr_on_plateau=True needs lr_schedule='constant', got {lr_schedule!r}."
            )
        if unknown := set(kwargs) - set(inspect.signature(TrainingPlan).parameters):
            raise ValueError(
                f"plan_kwargs has {join_names(sorted(unknown))}, but scvi.train.TrainingPlan has "
                "no such argument."
            )
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
        self.register_buffer("_kl_weight", torch.zeros(()), persistent=False)
        self._kl_weight_at: tuple[int, int | None] | None = None
        self._sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "validation": {}}
        # Empty if steps are not captured.
        self._captured: dict[str, CapturedSteps] = {}

    @property
    def is_captured(self) -> bool:
        """Whether steps run as CUDA graphs, which gather their minibatches themselves."""
        return bool(self._captured)

    def on_train_start(self) -> None:
        """Let processes that share minibatches draw different noise for their cells."""
        super().on_train_start()
        if processes().number > 1:
            torch.manual_seed(torch.initial_seed() + processes().rank)
        if can_be_captured(self):
            make_capturable(self.optimizers(use_pl_optimizer=False), self.device)
            steps = {"train": self._optimized_step, "validation": self._validated_step}
            state = functools.partial(fixed_state, self)
            self._captured = {mode: CapturedSteps(step, state) for mode, step in steps.items()}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss of a minibatch and add its terms to those of the epoch."""
        self._set_kl_weight()
        if self._captured:
            return self._captured["train"](batch)
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add the terms of a minibatch to those of the epoch."""
        self._set_kl_weight()
        if self._captured:
            self._captured["validation"](batch)
        else:
            self._step(batch, "validation")

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate the loss, unless the step has done so."""
        if not self._captured:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Do a step and let the optimizer change the weights, unless the step has done so."""
        if self._captured:
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep what a mapped model has of its reference, whatever the optimizer did."""
        self.module.restore_known_rows()

    def on_train_epoch_start(self) -> None:
        """Forget captured steps if what they have fixed has changed."""
        for steps in self._captured.values():
            steps.start_epoch()

    def on_train_epoch_end(self) -> None:
        """Log the KL weight and the training terms, averaged over cells."""
        self.log("kl_weight", float(self.loss_kwargs["kl_weight"]))
        self._log_means("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation terms, averaged over cells."""
        self._log_means("validation")

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer and the schedule of its learning rate."""
        config = super().configure_optimizers()
        if self.lr_schedule == "cosine":
            n_minibatches = self.trainer.estimated_stepping_batches
            schedule = CosineAnnealingLR(config["optimizer"], int(n_minibatches))
            config["lr_scheduler"] = {"scheduler": schedule, "interval": "step"}
        return config

    def get_optimizer_creator(self):
        """Return a function that makes the optimizer of some parameters.

        Adam and AdamW take their fused form, which is several times faster on CPU and GPU. Lightning does
        not clip gradients of mixed precision for it.
        """
        classes = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
        if self.optimizer_name not in classes:
            return super().get_optimizer_creator()
        # scvi-tools has that argument from 1.5 on.
        fused = getattr(self, "fused_optimizer", True) and self.device.type in ("cpu", "cuda")
        trainer = self._trainer
        if trainer is not None and trainer.gradient_clip_val and "mixed" in trainer.precision:
            fused = False
        return lambda params: classes[self.optimizer_name](
            params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )

    def teardown(self, stage: str) -> None:
        """Free the memory of captured steps."""
        self._captured = {}

    def _set_kl_weight(self) -> None:
        by_step = self.n_epochs_kl_warmup is None
        at = self.current_epoch, self.global_step if by_step else None
        if at != self._kl_weight_at:
            self._kl_weight_at = at
            # In place, since captured steps read it there.
            self.loss_kwargs["kl_weight"] = self._kl_weight.copy_(self.kl_weight)

    def _optimized_step(self, batch: Any) -> torch.Tensor:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss = self._step(batch, "train")
        loss.backward()
        optimizer.step()
        return loss.detach()

    def _validated_step(self, batch: Any) -> torch.Tensor:
        return self._step(batch, "validation")

    def _step(self, batch: Any, mode: str) -> torch.Tensor:
        _, _, output = self.forward(gathered(batch), loss_kwargs=self.loss_kwargs)
        n_cells = output.n_obs_minibatch
        loss_name = "train_loss" if mode == "train" else "validation_loss"
        terms = {
            loss_name: output.loss.detach() * n_cells,
            f"reconstruction_loss_{mode}": output.reconstruction_loss_sum.detach(),
            f"kl_local_{mode}": output.kl_local_sum.detach(),
            **{f"{k}_{mode}": v * n_cells for k, v in output.extra_metrics.items()},
            "n_cells": torch.full((), float(n_cells), device=self.device),
        }
        sums = self._sums[mode]
        for name, value in terms.items():
            if name not in sums:
                with torch.inference_mode(False):
                    sums[name] = torch.zeros_like(value)
            # In place, since captured steps add to it there.
            sums[name] += value
        return output.loss

    def _log_means(self, mode: str) -> None:
        sums = self._sums[mode]
        means = {name: value / sums["n_cells"] for name, value in sums.items()}
        del means["n_cells"]
        means[f"elbo_{mode}"] = means[f"reconstruction_loss_{mode}"] + means[f"kl_local_{mode}"]
        for name, value in means.items():
            self.log(name, value, prog_bar=name == "train_loss", sync_dist=self.use_sync_dist)
        for value in sums.values():
            value.zero_()
