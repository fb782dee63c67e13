"""An untrained network starts from the mean of the first minibatch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from trvae.data._on_device import gathered


class InitialMeans(Callback):
    """Shows the first minibatch to the module before the first step."""

    def on_train_batch_start(
        self, trainer: Any, plan: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Do so, unless training resumes."""
        if trainer.global_step == 0:
            plan.module.match_means(gathered(batch))
