"""Models that differ only in their seed, as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from trvae._utils._arguments import check_positive_integer, check_seed
from trvae.io._saved import remove_saved
from trvae.model._confidence import ConfidenceMixin
from trvae.model._ranking import RankingMixin
from trvae.model._transfer import TransferMixin
from trvae.model._trvae import TRVAE
from trvae.train._checkpoint import has_checkpoint
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from trvae.model._transfer import Minibatch, Selection


# What all models of an ensemble have in common, so that the first one's is the ensemble's.
_IN_COMMON = {
    "adata", "conditions", "data_is_sparse_", "expression_is_nonnegative_",
    "get_anndata_manager", "linear_weight", "mean_profiles_", "modelled_shares_", "module",
    "registry", "response_limit", "summary_stats", "_CELLS", "_cells_of", "_check_is_as_set_up",
    "_condition_key", "_gene_order", "_layer", "_modality", "_validate_anndata", "_var_names",
}  # fmt: skip


class TRVAEEnsemble(TransferMixin, ConfidenceMixin, RankingMixin):
    """Models that differ in their seed only, whose predictions are averaged.

    What differs between them, no training data tell. Expectations are averaged over the models;
    posterior draws (``n_samples``) come from one model after the other, so that intervals and
    spreads of draws are over seeds, too.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`TRVAE.setup_anndata`.
    n_models
        How many.
    seed
        Seed of the first; each of the others has the next.
    **model_kwargs
        Passed to :class:`TRVAE`.

    Attributes
    ----------
    models
        The models, each a :class:`TRVAE`.

    Raises
    ------
    ValueError
        As in :class:`TRVAE`, or if ``n_models`` is not positive.

    Examples
    --------
    >>> trvae.TRVAE.setup_anndata(train, condition_key="condition", labels_key="cell_type")
    >>> ensemble = trvae.TRVAEEnsemble(train, n_models=3)
    >>> ensemble.train()
    >>> ensemble.assess_transfer(nk_control, target_condition="stimulated")

    References
    ----------
    Lakshminarayanan, Pritzel & Blundell, *NeurIPS* 30 (2017).
    """

    def __init__(self, adata: AnnData, *, n_models: int = 5, seed: int = 0, **model_kwargs: Any):
        check_positive_integer("n_models", n_models)
        check_seed(seed)
        self.models = [TRVAE(adata, seed=seed + i, **model_kwargs) for i in range(n_models)]

    def __getattr__(self, name: str) -> Any:
        if name in _IN_COMMON:
            return getattr(self.models[0], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"TRVAEEnsemble of {len(self.models)} models:\n{self.models[0]!r}"

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train the models, one after the other.

        Parameters
        ----------
        *args, **kwargs
            Passed to :meth:`TRVAE.train`. Each model has a folder of its own within
            ``checkpoint_dir``; with ``resume_from``, those that have no checkpoint yet start anew.

        Raises
        ------
        ValueError, RuntimeError, OSError
            As :meth:`TRVAE.train`.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM end the training of a model: the ensemble is then not complete.
        """
        bar = tqdm(self.models, "models", disable=not kwargs.get("enable_progress_bar", True))
        for i, model in enumerate(bar):
            own = dict(kwargs)
            for argument in ("checkpoint_dir", "resume_from"):
                if own.get(argument) is not None:
                    own[argument] = Path(own[argument]) / str(i)
            if "resume_from" in own and not has_checkpoint(own["resume_from"]):
                del own["resume_from"]
            model.train(*args, **own)
            end_if_interrupted(model)

    def save(self, dir_path: str | Path, overwrite: bool = False, **kwargs: Any) -> None:
        """Save each model in a folder of its own within ``dir_path``.

        Parameters
        ----------
        dir_path
            Folder to make.
        overwrite
            Whether what is there already may be overwritten.
        **kwargs
            Passed to :meth:`TRVAE.save`.

        Raises
        ------
        ValueError, OSError
            As :meth:`TRVAE.save`, or if models of a larger ensemble are there already, and not to be
            overwritten.
        """
        superfluous = [f for f in _numbered(dir_path) if int(f.name) >= len(self.models)]
        if superfluous and not overwrite:
            raise ValueError(
                f"{dir_path} has models of an ensemble already. Name another folder, or give "
                "overwrite=True."
            )
        for i, model in enumerate(self.models):
            model.save(str(Path(dir_path) / str(i)), overwrite=overwrite, **kwargs)
        # They would be loaded as if they were of this ensemble.
        for folder in superfluous:
            remove_saved(folder, kwargs.get("prefix"))

    @classmethod
    def load(cls, dir_path: str | Path, *args: Any, **kwargs: Any) -> TRVAEEnsemble:
        """Load what :meth:`save` has saved.

        Parameters
        ----------
        dir_path
            The folder.
        *args, **kwargs
            Passed to :meth:`TRVAE.load`.

        Raises
        ------
        ValueError
            If there is no ensemble, or as in :meth:`TRVAE.load`.
        """
        folders = _numbered(dir_path)
        if not folders:
            raise ValueError(f"There is no ensemble in {str(dir_path)!r}.")
        return cls._of([TRVAE.load(folder, *args, **kwargs) for folder in folders])

    @classmethod
    def _of(cls, models: list[TRVAE]) -> TRVAEEnsemble:
        ensemble = cls.__new__(cls)
        ensemble.models = models
        return ensemble

    # ------------------------------------------------------- what the mixins ask for

    def _check_if_trained(self, **kwargs: Any) -> None:
        for model in self.models:
            model._check_if_trained(**kwargs)

    def _state(self) -> Iterator[np.ndarray]:
        for model in self.models:
            yield from model._state()

    def _without_cells(self) -> TRVAEEnsemble:
        return self._of([model._without_cells() for model in self.models])

    def _for(self, model: TRVAE, selection: Selection) -> Selection:
        """The same cells, as another model reads them."""
        return replace(selection, registered=model._validate_anndata(selection.registered))

    def _decode_both(self, selection, target, batch_size, draw=None) -> Iterator[Minibatch]:
        models = self.models if draw is None else [self.models[draw[1] % len(self.models)]]
        decoded = [
            model._decode_both(self._for(model, selection), target, batch_size, draw)
            for model in models
        ]
        return map(_average, zip(*decoded, strict=True))

    def _support_of(self, selection, target, n_neighbors, batch_size) -> pd.DataFrame:
        tables = [
            model._support_of(self._for(model, selection), target, n_neighbors, batch_size)
            for model in self.models
        ]
        return sum(tables[1:], tables[0]) / len(tables)


def _numbered(dir_path: str | Path) -> list[Path]:
    """The folders of an ensemble's models, in their order."""
    folders = [folder for folder in Path(dir_path).glob("*") if folder.name.isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name))


def _average(minibatches: tuple[Minibatch, ...]) -> Minibatch:
    """Average what the models differ in."""

    def mean(name: str):
        values: list[Any] = [getattr(minibatch, name) for minibatch in minibatches]
        return None if values[0] is None else np.mean(values, axis=0)

    differing = ("source", "target", "zero_inflation", "source_sd", "target_sd")
    first = minibatches[0]._replace(**{name: mean(name) for name in differing})
    if first.inverse_dispersion is None:
        return first
    # The variance is linear in the dispersion, not in its inverse.
    inverses: list[Any] = [minibatch.inverse_dispersion for minibatch in minibatches]
    dispersion = np.mean([1 / inverse for inverse in inverses], axis=0)
    return first._replace(inverse_dispersion=1 / dispersion)
