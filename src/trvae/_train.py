"""Training: minibatches in which every condition has cells, and the plan."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule
from scvi import REGISTRY_KEYS, settings
from scvi.dataloaders import DataSplitter
from scvi.train import TrainingPlan
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Sampler

from trvae._data import check_choice, check_from_0, check_positive_integer, is_number, join_names
from trvae._distributed import ALONE, Processes, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.data import AnnDataManager
    from scvi.module.base import BaseModuleClass

LRSchedule = Literal["constant", "cosine"]

# Cells of each condition in a minibatch, below which minibatches are balanced.
MIN_CELLS_PER_CONDITION = 8
# Arguments of the plan.
_NUMBERS_FROM_0 = {
    "lr", "eps", "weight_decay", "max_kl_weight", "min_kl_weight", "lr_factor", "lr_patience",
    "lr_threshold", "lr_min",
}  # fmt: skip
_WARMUPS = {"n_epochs_kl_warmup", "n_steps_kl_warmup"}
# Where a splitter has the positions of its cells.
SPLIT = ("train_idx", "val_idx", "test_idx")


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


def _check_split(split: Any, n_cells: int) -> None:
    """Raise a ``ValueError`` if any position of a split is not a cell's; scvi-tools checks more."""
    for part in split if isinstance(split, list) else []:
        wrong = np.asarray([] if part is None else part).ravel()
        if wrong.dtype.kind in "iu":
            wrong = wrong[(wrong < 0) | (wrong >= n_cells)]
        if len(wrong) > 0:
            raise ValueError(
                "datasplitter_kwargs['external_indexing'] is not of positions from 0 to "
                f"{n_cells - 1}, of {n_cells} cells or images: it has {join_names(wrong)}."
            )


class ConditionBalancedSampler(Sampler[list[int]]):
    """Minibatches with at least a few cells of every condition.

    In an epoch every cell is seen once; cells of a condition that is too rare for that are seen
    repeatedly, so that each minibatch has ``min_per_condition`` of them. Minibatches are about
    equally large: none is left with a single cell.

    Parameters
    ----------
    condition
        Code of each cell's condition, ``n_cells``.
    batch_size
        Number of cells in a minibatch, without the repeated ones of rare conditions.
    min_per_condition
        Smallest number of cells of each condition in a minibatch. It is lowered to
        ``batch_size // n_conditions`` if there are many; 0 leaves the composition to chance.
    processes
        Which share every minibatch. This one gets its part, if all have the same seed.

    Raises
    ------
    ValueError
        If there are fewer than two cells for each process, or a minibatch would have fewer.
    """

    def __init__(
        self,
        condition: np.ndarray,
        batch_size: int,
        min_per_condition: int = MIN_CELLS_PER_CONDITION,
        processes: Processes = ALONE,
    ):
        least = 2 * processes.number
        if len(condition) < least:
            raise ValueError(
                f"Training needs at least {least} cells or images beside those to validate on, got "
                f"{len(condition)}."
            )
        if batch_size < least:
            raise ValueError(f"batch_size={batch_size} is too small: {least} or more.")
        self.n_minibatches = max(1, -(-len(condition) // batch_size))
        if len(condition) < least * self.n_minibatches:
            self.n_minibatches = len(condition) // least
        self.processes = processes
        # Of its own, as processes draw differently from the global one once they train.
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        conditions = np.unique(condition)
        self.min_per_condition = min(min_per_condition, batch_size // len(conditions))
        if self.min_per_condition > 0:
            self.strata = [np.flatnonzero(condition == c) for c in conditions]
        else:
            self.strata = [np.arange(len(condition))]

    def __len__(self) -> int:
        return self.n_minibatches

    def __iter__(self) -> Iterator[list[int]]:
        parts = [self._split(stratum) for stratum in self.strata]
        for minibatch in zip(*parts, strict=True):
            rank, number = self.processes
            yield np.concatenate(minibatch)[rank::number].tolist()

    def _split(self, cells: np.ndarray) -> list[np.ndarray]:
        """Divide cells in random order among the minibatches, repeating rare ones."""
        n_needed = max(len(cells), self.min_per_condition * self.n_minibatches)
        n_rounds = -(-n_needed // len(cells))
        order = np.concatenate(
            [torch.randperm(len(cells), generator=self.generator) for _ in range(n_rounds)]
        )
        return np.array_split(cells[order[:n_needed]], self.n_minibatches)


class ConditionBalancedDataSplitter(DataSplitter):
    """scvi-tools' splitter with :class:`ConditionBalancedSampler` for the training set.

    Parameters
    ----------
    adata_manager, *args, **kwargs
        Passed to :class:`~scvi.dataloaders.DataSplitter`.
    condition_balanced
        Whether every minibatch shall have cells of every condition. ``None``: if chance alone
        would leave the rarest condition with too few.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        *args,
        condition_balanced: bool | None = None,
        **kwargs,
    ):
        _check_split(kwargs.get("external_indexing"), adata_manager.adata.n_obs)
        super().__init__(adata_manager, *args, **kwargs)
        self.condition_balanced = condition_balanced
        self._sampler: ConditionBalancedSampler | None = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The split, and where in their random order the minibatches are."""
        state = {name: torch.from_numpy(getattr(self, name)) for name in SPLIT}
        if self._sampler is not None:
            state["generator"] = self._sampler.generator.get_state()
        return state

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Let the minibatches go on in the order in which they would have come."""
        if self._sampler is not None:
            self._sampler.generator.set_state(state_dict["generator"])

    def val_dataloader(self) -> DataLoader | list:
        """Validation minibatches, none if all cells are trained on."""
        return super().val_dataloader() if len(self.val_idx) > 0 else []

    def train_dataloader(self) -> DataLoader:
        """Training minibatches."""
        loader_kwargs = dict(self.data_loader_kwargs)
        batch_size = loader_kwargs.pop("batch_size", settings.batch_size)
        sharing = processes() if loader_kwargs.pop("distributed_sampler", False) else ALONE
        batch_size *= sharing.number

        condition = np.asarray(
            self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)
        ).ravel()[self.train_idx]
        balanced = self.condition_balanced
        if balanced is None and len(condition) > 0:
            rarest = np.unique(condition, return_counts=True)[1].min() / len(condition)
            balanced = rarest * batch_size < MIN_CELLS_PER_CONDITION
        self._sampler = ConditionBalancedSampler(
            condition, batch_size, MIN_CELLS_PER_CONDITION if balanced else 0, sharing
        )
        dataset = self.adata_manager.create_torch_dataset(
            indices=self.train_idx, load_sparse_tensor=self.load_sparse_tensor
        )
        loader_kwargs.setdefault("num_workers", settings.dl_num_workers)
        loader_kwargs.setdefault("persistent_workers", settings.dl_persistent_workers)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=self._sampler,
            pin_memory=self.pin_memory,
            **loader_kwargs,
        )


def minibatches_of(datamodule: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield what a data module has to train and to validate on, as a module takes it.

    Parameters
    ----------
    datamodule
        One of Lightning's.
    """
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
        for minibatch in loader or []:
            yield datamodule.on_before_batch_transfer(minibatch, 0)


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
