"""Training and validation steps as CUDA graphs: one launch in place of hundreds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from trvae.module._distributed import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from trvae.data._on_device import MinibatchOnDevice

logger = logging.getLogger(__name__)

# Steps that run as they are before one is captured, since kernels and optimizers prepare themselves.
_N_PLAIN = 3
# Each number of cells in a minibatch needs a graph of its own. Balanced ones differ by a few cells.
_MAX_GRAPHS = 8

# Methods that act within a step, which a graph does not call, or may change what it has fixed.
_HOOKS_OF_CALLBACKS = (
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_start", "on_train_batch_end",
)  # fmt: skip
_HOOKS_OF_PLANS = (*_HOOKS_OF_CALLBACKS, "training_step", "backward", "optimizer_step")


class Graph(NamedTuple):
    """A captured step."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    """What it reads, to be overwritten before a replay."""
    result: torch.Tensor
    """What it returned, overwritten by a replay."""


class CapturedSteps:
    """A step on minibatches, captured once for each shape of these.

    Parameters
    ----------
    step
        Takes a minibatch and does all that is to be done with it, without asking the GPU for
        values. What it returns is overwritten by the next step.
    state
        Returns what a graph has fixed. If it changes, steps are captured anew.
    """

    def __init__(self, step: Callable[[Any], torch.Tensor], state: Callable[[], Hashable]):
        self._step = step
        self._state = state
        self._captured_state: Hashable = None
        self._n_plain, self._max_graphs = 0, _MAX_GRAPHS
        self._graphs: dict[Hashable, Graph] = {}

    def start_epoch(self) -> None:
        """Forget all graphs if what they have fixed has changed."""
        if (state := self._state()) != self._captured_state:
            self._captured_state, self._n_plain = state, 0
            self._graphs.clear()

    def __call__(self, minibatch: MinibatchOnDevice | dict[str, Any]) -> torch.Tensor:
        """Do the step."""
        inputs = _tensors_in(minibatch)
        shape = tuple((name, values.shape, values.dtype) for name, values in inputs.items())
        if shape not in self._graphs:
            is_ready = self._n_plain >= _N_PLAIN and all(x.is_cuda for x in inputs.values())
            if not is_ready or len(self._graphs) == self._max_graphs:
                self._n_plain += 1
                return self._step(minibatch)
            try:
                self._graphs[shape] = self._captured(minibatch)
            except RuntimeError as error:
                logger.warning(f"Steps are not captured in CUDA graphs: {error}")
                self._max_graphs = len(self._graphs)
                return self._step(minibatch)
        graph, static, result = self._graphs[shape]
        for kept, values in zip(static, inputs.values(), strict=True):
            kept.copy_(values)
        graph.replay()
        return result

    def _captured(self, minibatch: MinibatchOnDevice | dict[str, Any]) -> Graph:
        inputs = {name: values.clone() for name, values in _tensors_in(minibatch).items()}
        graph = torch.cuda.CUDAGraph()
        pool = next((known.graph.pool() for known in self._graphs.values()), None)
        # Threads of the user may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            result = self._step(
                minibatch | inputs
                if isinstance(minibatch, dict)
                else minibatch._replace(positions=inputs["positions"])
            )
        return Graph(graph, list(inputs.values()), result)


def _tensors_in(minibatch: MinibatchOnDevice | dict[str, Any]) -> dict[str, torch.Tensor]:
    named = minibatch if isinstance(minibatch, dict) else minibatch._asdict()
    return {name: values for name, values in named.items() if isinstance(values, torch.Tensor)}


def can_be_captured(plan: Any) -> bool:
    """Whether steps of a training plan may run as CUDA graphs; if not, the log says why."""
    trainer = plan.trainer
    if plan.device.type != "cuda":
        return False
    reasons = {
        "several processes train": processes().number > 1,
        "gradients are clipped": trainer.gradient_clip_val,
        "gradients are accumulated": trainer.accumulate_grad_batches != 1,
        "the precision needs scaled gradients": getattr(trainer.precision_plugin, "scaler", None),
        "the optimizer is not scvi-tools' Adam": plan.optimizer_name not in ("Adam", "AdamW"),
        "a training plan of your own acts within a step": _is_foreign(plan, _HOOKS_OF_PLANS),
        "a callback acts within a step": any(
            _is_foreign(callback, _HOOKS_OF_CALLBACKS) for callback in trainer.callbacks
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            logger.info(f"Steps are not captured in CUDA graphs: {reason}.")
            return False
    return True


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimizer keep on the device what changes from step to step."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        # Schedulers fill it with new values.
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


def fixed_state(plan: Any) -> Hashable:
    """All that a graph has fixed and a user's code may change between epochs."""
    settings = {
        name: value
        for name, value in [*vars(plan.module).items(), *plan.loss_kwargs.items()]
        if isinstance(value, bool | int | float | str | tuple)
    }
    groups = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in plan.optimizers(use_pl_optimizer=False).param_groups
    ]
    parameters = [(p.data_ptr(), p.requires_grad) for p in plan.module.parameters()]
    return repr((settings, groups, parameters))


def _is_foreign(hooked: Any, methods: tuple[str, ...]) -> bool:
    """Whether any of these methods is neither ours nor of a library that we know."""
    homes = {getattr(type(hooked), method).__module__.split(".")[0] for method in methods}
    return not homes <= {"lightning", "scvi", "trvae"}
