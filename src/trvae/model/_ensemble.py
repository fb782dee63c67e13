"""Ensembles over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from trvae._scvi import undone_on_error
from trvae._utils._arguments import POSITIVE_INTEGER, SEED, check_arguments
from trvae.io._atomic import annotate_os_errors, atomic_update
from trvae.io._saved import model_file
from trvae.model._confidence import ConfidenceMixin
from trvae.model._ranking import RankingMixin
from trvae.model._streaming import digest_of_models
from trvae.model._trvae import TRVAE
from trvae.train._checkpoint import has_checkpoint
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from scvi.data import AnnDataManager

    from trvae.module import TRVAEModule


class TRVAEEnsemble(ConfidenceMixin, RankingMixin):
    """Models that differ only in their seed, whose predictions are averaged.

    Their disagreement shows what the data do not determine. The decoded means under both
    conditions are averaged over the models, then a cell's counterfactual is made of these, so that
    :meth:`~TRVAE.transfer` draws around :meth:`~TRVAE.get_transferred_expression`. A counterfactual
    is not linear in the decoded means, so it is not the average of the models' counterfactuals.
    Posterior draws (``n_samples``) come from one model after another, so they include the variation
    between seeds.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`TRVAE.setup_anndata`.
    n_models
        Number of models.
    seed
        Seed of the first model; the others have the next ones.
    **model_kwargs
        Passed to :class:`TRVAE`.

    Attributes
    ----------
    models
        The models, each a :class:`TRVAE`. The first model's ``adata``, ``conditions``,
        ``registry``, ``summary_stats`` and ``module`` are also available on the ensemble.

    Raises
    ------
    ValueError
        If ``n_models`` is not positive, another argument is not one of those allowed, or the data
        do not suit the likelihood (see :class:`TRVAE`).

    Examples
    --------
    >>> trvae.TRVAE.setup_anndata(train, condition_key="condition", labels_key="cell_type")
    >>> ensemble = trvae.TRVAEEnsemble(train, n_models=3)
    >>> ensemble.train()
    >>> ensemble.assess_transfer(nk_control, target_condition="stimulated")

    References
    ----------
    Lakshminarayanan, Pritzel & Blundell, *NeurIPS* 30 (2017): deep ensembles.
    """

    def __init__(self, adata: AnnData, *, n_models: int = 5, seed: int = 0, **model_kwargs: Any):
        check_arguments(locals(), {"n_models": POSITIVE_INTEGER, "seed": SEED})
        self.models = [TRVAE(adata, seed=seed + i, **model_kwargs) for i in range(n_models)]

    def __repr__(self) -> str:
        return f"TRVAEEnsemble of {len(self.models)} models:\n{self.models[0]!r}"

    @property
    def _models(self) -> list[TRVAE]:
        return self.models

    @property
    def adata(self) -> AnnData | MuData | None:
        """Data that the models were set up with."""
        return self.models[0].adata

    @property
    def conditions(self) -> list[Any]:
        """The conditions that the models know, in the order of their codes."""
        return self.models[0].conditions

    @property
    def linear_weight(self) -> float:
        """Weight of the linear model of the labels, see :class:`TRVAE`."""
        return self.models[0].linear_weight

    @property
    def response_limit(self) -> float | None:
        """Limit of the decoder's change, see :class:`TRVAE`."""
        return self.models[0].response_limit

    @property
    def registry(self) -> dict[str, Any]:
        """Registry of the data, as in scvi-tools' models."""
        return self.models[0].registry

    @property
    def summary_stats(self) -> Any:
        """Numbers of cells, genes, conditions and labels, as in scvi-tools' models."""
        return self.models[0].summary_stats

    @property
    def module(self) -> TRVAEModule:
        """Network of the first model."""
        return self.models[0].module

    def get_anndata_manager(
        self, adata: AnnData | MuData, required: bool = False
    ) -> AnnDataManager:
        """Return the manager of data that the first model knows.

        Parameters
        ----------
        adata, required
            See :meth:`scvi.model.base.BaseModelClass.get_anndata_manager`: the data, and whether
            it is an error if they are unknown.
        """
        return self.models[0].get_anndata_manager(adata, required)

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train the models, one after another.

        Parameters
        ----------
        *args, **kwargs
            Passed to :meth:`TRVAE.train`. Each model has its own folder within
            ``checkpoint_dir``; with ``resume_from``, models without a checkpoint start from scratch.

        Raises
        ------
        ValueError, RuntimeError, OSError
            See :meth:`TRVAE.train`: an argument or a checkpoint is invalid, training diverges, or
            a checkpoint can't be written.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM end the training of a model, which leaves the ensemble incomplete.
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

    def calibrate(self, target_condition: Any, **kwargs: Any) -> pd.DataFrame:
        """Learn from labels that are left out, with models like the first of the ensemble.

        Parameters
        ----------
        target_condition, **kwargs
            See :meth:`TRVAE.calibrate`: the condition to predict, and how to calibrate.

        Returns
        -------
        See :meth:`TRVAE.calibrate`.

        Raises
        ------
        ValueError, RuntimeError, OSError
            See :meth:`TRVAE.calibrate`.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM interrupt a training. The same call continues.
        """
        return self.models[0].calibrate(target_condition, **kwargs)

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save each model in its own folder within ``dir_path``.

        Parameters
        ----------
        dir_path
            Folder to create.
        prefix
            Prefix of the file names.
        overwrite
            Whether to replace an ensemble that is saved there. If it is larger, its further models stay
            and are no longer loaded.
        save_anndata, **kwargs
            See :meth:`TRVAE.save`: whether to save the data with each model, and how.

        Raises
        ------
        ValueError, OSError
            See :meth:`TRVAE.save`: a folder exists and ``overwrite`` is false, or a model can't be
            written, which leaves there what was saved before.
        """
        if _models_in(dir_path, prefix) and not overwrite:
            raise ValueError(
                f"{dir_path} holds an ensemble. Choose another folder, or pass overwrite=True."
            )
        folder = Path(dir_path).absolute()
        ensemble = {"id": digest_of_models(self.models), "n_models": len(self.models)}
        with annotate_os_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_update(folder) as unfinished:
            for i, model in enumerate(self.models):
                model.ensemble_ = ensemble | {"number": i}
                try:
                    model.save(unfinished / str(i), prefix, save_anndata=save_anndata, **kwargs)
                finally:
                    model.ensemble_ = None

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: Any = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        **kwargs: Any,
    ) -> TRVAEEnsemble:
        """Load a saved ensemble.

        Parameters
        ----------
        dir_path
            The folder.
        adata, accelerator, device, prefix, **kwargs
            See :meth:`TRVAE.load`: the cells, and how to load the models.

        Raises
        ------
        ValueError
            If no ensemble is saved there, a model is missing or of another ensemble, a file is damaged,
            or the cells do not fit the models (see :meth:`TRVAE.load`).
        """
        folders = _models_in(dir_path, prefix)
        if not folders:
            raise ValueError(f"no ensemble is saved in {str(dir_path)!r}.")
        kwargs |= {"accelerator": accelerator, "device": device, "prefix": prefix}
        ensemble = cls.__new__(cls)
        with undone_on_error(TRVAE, adata):
            first = TRVAE.load(folders[0], adata, **kwargs)
            # Older models don't say which ensemble they belong to.
            n_models = (first.ensemble_ or {}).get("n_models", len(folders))
            # Further ones can be left of a larger ensemble that this one has replaced.
            others = [TRVAE.load(folder, adata, **kwargs) for folder in folders[1:n_models]]
            ensemble.models = [first, *others]
            saved = [model.ensemble_ or {} for model in ensemble.models]
            if any(saved) and saved != [saved[0] | {"number": i} for i in range(n_models)]:
                raise ValueError(
                    f"{str(dir_path)!r} holds models of different ensembles, as a save was "
                    "interrupted, or lacks models. Save the ensemble again."
                )
        for model in ensemble.models:
            model.ensemble_ = None
        return ensemble


def _models_in(dir_path: str | Path, prefix: str | None) -> list[Path]:
    """Folders of an ensemble's models, in their order."""
    folders = [
        folder
        for folder in Path(dir_path).glob("*")
        if folder.name.isdecimal() and model_file(folder, prefix).is_file()
    ]
    return sorted(folders, key=lambda folder: int(folder.name))
