"""All private attributes of scvi-tools that are used. Check them against each new release.

The protected methods that models override are in ``model/_base.py`` and ``model/_setup.py``, the
format of saved models in ``io/_saved.py``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anndata import AnnData
from mudata import MuData
from scvi import settings
from scvi.train._progress import ProgressBar as ProgressBar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.data import AnnDataManager

MINIFY_TYPE_KEY = "_scvi_adata_minify_type"
"""Where scvi-tools notes in ``uns`` how an AnnData was minified."""
LATENT_POSTERIOR = "latent_posterior_parameters"
"""Minified to the posterior of ``z``, without expression."""
DEFAULT_LABELS_KEY = "_scvi_labels"
"""Column of the single label of cells that were set up without labels."""
LOGGER_OF_FILES = "scvi.data._download"
"""Logs which file a model is read from."""


def is_registered(key: Any) -> bool:
    """Whether scvi-tools has added what is under this key of an AnnData or a MuData."""
    # A MuData has columns of its modalities under a prefix.
    return str(key).split(":")[-1].startswith("_scvi_")


def minify_type(data: AnnData | MuData) -> str | None:
    """How the data were minified, or ``None`` if they were not."""
    return data.uns.get(MINIFY_TYPE_KEY)


@contextmanager
def settings_seed(seed: int) -> Iterator[None]:
    """Let data splits use a seed; the public setter would reseed all generators, too."""
    before, settings._seed = settings._seed, seed
    try:
        yield
    finally:
        settings._seed = before


@contextmanager
def undone_on_error(model_class: Any, data: Any) -> Iterator[None]:
    """Undo on an error what is registered of an AnnData or a MuData, and a subset of its genes.

    Parameters
    ----------
    model_class
        Class that the data are registered with.
    data
        The user's data; anything else is left alone.
    """
    parts = [data, *data.mod.values()] if isinstance(data, MuData) else [data]
    before = [
        (part, dict(vars(part)), [_registered(values) for values in _annotations(part)])
        for part in parts
        if isinstance(part, AnnData | MuData)
    ]
    managers = dict(model_class._setup_adata_manager_store)
    try:
        yield
    except BaseException:
        for part, attributes, registered in before:
            vars(part).update(attributes)
            for values, former in zip(_annotations(part), registered, strict=True):
                for key in _registered(values).keys() - former.keys():
                    del values[key]
                for key, value in former.items():
                    values[key] = value
        model_class._setup_adata_manager_store.clear()
        model_class._setup_adata_manager_store.update(managers)
        raise


def _annotations(data: AnnData | MuData) -> tuple[Any, Any, Any]:
    return data.obs, data.obsm, data.uns


def _registered(values: Any) -> dict[Any, Any]:
    return {key: values[key] for key in values if is_registered(key)}


def latest_manager(model_class: Any, data: AnnData | MuData) -> AnnDataManager:
    """The manager of data that were just set up."""
    return model_class._get_most_recent_anndata_manager(data, required=True)


def is_registered_with(model: Any, data: AnnData | MuData) -> bool:
    """Whether the model has a manager for this very object."""
    managers = model._per_instance_manager_store.get(model.id, {}).values()
    return any(manager.adata is data for manager in managers)


def keep_only_manager(model: Any, manager: AnnDataManager, former_uuid: str | None) -> None:
    """Move a manager from the class to the model, in place of a former one.

    Otherwise both would hold on to the data for good.
    """
    del model._setup_adata_manager_store[manager.adata_uuid]
    managers = model._per_instance_manager_store.setdefault(model.id, {})
    managers.pop(former_uuid, None)
    managers[manager.adata_uuid] = manager


def adopt(model: Any, data: AnnData | MuData, manager: AnnDataManager) -> None:
    """Give a model that was made from a registry its data."""
    model._register_manager_for_instance(manager)
    model._adata, model._adata_manager, model.registry_ = data, manager, manager.registry
