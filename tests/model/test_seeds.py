"""No public call leaves anything outside of its own models and files other than it was."""

import inspect
import logging
import os
import pickle
import random
import re
import warnings
from functools import partial
from types import SimpleNamespace

import anndata
import matplotlib as mpl
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pytest
import scvi
import torch
from helpers import FIXTURES, QUIET, SMALL, fit, members_in_reference, reference
from PIL import Image

import trvae

KEYS = {"condition_key": "condition", "labels_key": "cell_type"}
IN_RNA = {"modalities": dict.fromkeys(KEYS, "rna")}
OF_IMAGES = {"condition_key": "condition", "image_shape": (6, 6)}
BRIEFLY = {"max_epochs": 1, **QUIET}


def state():
    """What all code of a process shares."""
    return {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "CUDA's generators": [
            generator.numpy().tobytes() for generator in torch.cuda.get_rng_state_all()
        ],
        "numpy's generator": pickle.dumps(np.random.get_state()),
        "python's generator": random.getstate(),
        "default type": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "floating point": np.geterr(),
        "scvi-tools": {name: str(value) for name, value in vars(scvi.settings).items()},
        "warnings": list(warnings.filters),
        "logging": {
            name: logging.getLogger(name).level
            for name in ("", "anndata", "lightning", "lightning.pytorch", "matplotlib", "scvi")
        },
        "matplotlib": dict(mpl.rcParams),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


def trained(model_class, data, setup="setup_anndata", **kwargs):
    data = data.copy()
    getattr(model_class, setup)(data, **kwargs)
    model = model_class(data, seed=0, **(SMALL if model_class is trvae.TRVAE else {}))
    model.train(**BRIEFLY)
    return model


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Cells, images, models of them, and the folder that all of them are saved in."""
    cells = trvae.datasets.simulated(n_cells=20, n_genes=20)
    images = anndata.AnnData(np.random.default_rng(0).random((24, 36), np.float32))
    images.obs["condition"] = np.resize(["thin", "thick"], 24)
    # It lacks a gene, and has the others in another order.
    mdata = mudata.MuData({"rna": cells[:, :0:-1].copy()})
    whole = mudata.MuData({"rna": cells.copy(), "other": cells[:, :3].copy()})
    treated = cells.obs["condition"] == "treated"
    new = cells[:40].copy()
    new.obs["condition"] = "new"
    ensemble = trvae.TRVAEEnsemble(fit(cells, train=BRIEFLY).adata, n_models=2, **SMALL)
    ensemble.train(**BRIEFLY)
    folder = tmp_path_factory.mktemp("saved")
    models = {
        "TRVAE": fit(cells, train=BRIEFLY),
        "mudata": trained(trvae.TRVAE, whole, "setup_mudata", **KEYS, **IN_RNA),
        "ImageTRVAE": trained(trvae.ImageTRVAE, images, **OF_IMAGES),
        "TRVAEEnsemble": ensemble,
    }
    for name, model in models.items():
        model.save(folder / name, save_anndata=True)
    save_pictures(folder)
    groups = cells[treated].copy(), cells[treated].copy(), cells[~treated]
    return SimpleNamespace(
        cells=cells, images=images, mdata=mdata, new=new, groups=groups, folder=folder, **models
    )


def copied(mdata):
    """MuData itself draws names for temporary columns."""
    drawn = random.getstate()
    try:
        return mdata.copy()
    finally:
        random.setstate(drawn)


def save_pictures(folder):
    for name, size in {
        "images/treated/a/{}.png": (8, 8),
        "celeba/img_align_celeba/00000{}.jpg": (16, 16, 3),
    }.items():
        for number in range(4):
            path = folder / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full(size, 60 * number, np.uint8)).save(path)
    table = "4\nSmiling Male\n" + "".join(f"00000{i}.jpg {(-1) ** i} 1\n" for i in range(4))
    (folder / "celeba" / "list_attr_celeba.txt").write_text(table)


# ------------------------------------------------------------------------------- calls


def minify(given, model):
    model = getattr(given, model).load(given.folder / model)
    moments = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = moments
    model.minify_adata()


def from_scarches(given):
    folder = FIXTURES / "scarches" / "nb"
    expected = np.load(folder / "expected.npz")
    cells = anndata.AnnData(expected["x"])
    cells.obs["study"], cells.var_names = expected["study"], expected["genes"]
    trvae.TRVAE.from_scarches(folder, cells)


def evaluated(given):
    methods = {"trVAE": lambda: trvae.TRVAEMethod(SMALL, BRIEFLY)}
    trvae.evaluate(
        given.cells, **KEYS, source_condition="control", labels=["type_0"], seeds=[0],
        methods=methods, progress_bar=False,
    )  # fmt: skip


def ask(given, model, method, kwargs):
    return getattr(getattr(given, model), method)(**kwargs)


def read(given, model, method):
    getattr(getattr(given, model), method)(given.folder / model)


def save(given, model):
    getattr(given, model).save(given.out / "model", save_anndata=True)


TRANSFER = {
    "transfer": {},
    "get_transferred_expression": {"n_samples": 2},
    "assess_transfer": {},
    "get_transfer_support": {},
}
OF_GENES = {
    "calibrate": {"progress_bar": False},
    "get_transferred_means": {"source_condition": "control"},
    "rank_transferred_genes": {},
}
REPRESENT = {
    "get_latent_representation": {},
    "get_mmd_representation": {},
    "get_elbo": {},
    "get_marginal_ll": {"n_mc_samples": 2},
    "get_reconstruction_error": {},
    "get_aggregated_posterior": {},
    "get_var_names": {},
}
OF_EXPRESSION = {
    "get_normalized_expression": {"n_samples": 2},
    "differential_expression": {"groupby": "condition", "group1": "treated", "silent": True},
    "get_likelihood_parameters": {},
    "get_feature_correlation_matrix": {},
    "posterior_predictive_sample": {},
}
CALLS = {
    "TRVAE.setup_anndata": lambda given: trvae.TRVAE.setup_anndata(given.cells.copy(), **KEYS),
    "TRVAE.setup_mudata": lambda given: trvae.TRVAE.setup_mudata(
        copied(given.mdata), **KEYS, **IN_RNA
    ),
    "TRVAE.train": lambda given: trained(trvae.TRVAE, given.cells, **KEYS),
    "TRVAE.transfer of MuData": lambda given: given.mudata.transfer(target_condition="treated"),
    "TRVAE.transfer to a file": lambda given: given.TRVAE.transfer(
        given.cells, "treated", out=given.out / "out.h5ad", chunk_size=50, progress_bar=False
    ),
    "TRVAE.load of MuData": partial(read, model="mudata", method="load"),
    "TRVAE.load_query_data": lambda given: trvae.TRVAE.load_query_data(
        given.new, given.folder / "TRVAE"
    ).train(**BRIEFLY),
    "TRVAE.prepare_query_anndata": lambda given: trvae.TRVAE.prepare_query_anndata(
        given.cells[:, 1:].copy(), given.folder / "TRVAE"
    ),
    "TRVAE.prepare_query_mudata": lambda given: trvae.TRVAE.prepare_query_mudata(
        copied(given.mdata), given.mudata
    ),
    "TRVAE.from_scarches": from_scarches,
    "ImageTRVAE.setup_anndata": lambda given: trvae.ImageTRVAE.setup_anndata(
        given.images.copy(), **OF_IMAGES
    ),
    "ImageTRVAE.train": lambda given: trained(trvae.ImageTRVAE, given.images, **OF_IMAGES),
    "ImageTRVAE.get_images": lambda given: given.ImageTRVAE.get_images(given.images),
    "ImageTRVAE.prepare_query_anndata": lambda given: trvae.ImageTRVAE.prepare_query_anndata(
        given.images.copy(), given.folder / "ImageTRVAE"
    ),
    "ImageTRVAE.load_query_data": lambda given: trvae.ImageTRVAE.load_query_data(
        given.images, given.folder / "ImageTRVAE"
    ),
    "TRVAEEnsemble.train": lambda given: trvae.TRVAEEnsemble(
        given.TRVAEEnsemble.adata, n_models=2, **SMALL
    ).train(**BRIEFLY),
    "evaluate": evaluated,
    "pl.mean_scatter": lambda given: trvae.pl.mean_scatter(*given.groups, show=False),
    "pl.response": lambda given: trvae.pl.response(*given.groups, show=False),
    "pl.response_by_label": lambda given: trvae.pl.response_by_label(
        *given.groups, labels_key="cell_type", show=False
    ),
    "pl.umap": lambda given: trvae.pl.umap(given.TRVAE, n_neighbors=5, show=False),
    "pl.history": lambda given: trvae.pl.history(given.TRVAE, show=False),
    "metrics.transfer_metrics": lambda given: trvae.metrics.transfer_metrics(*given.groups),
    "metrics.summarize": lambda given: trvae.metrics.summarize(
        trvae.metrics.transfer_metrics(*given.groups)
    ),
    "metrics.skill_scores": lambda given: trvae.metrics.skill_scores(
        trvae.metrics.transfer_metrics(*given.groups)
    ),
    "metrics.paired_differences": lambda given: trvae.metrics.paired_differences(
        trvae.metrics.transfer_metrics(*given.groups)
        .rename_axis("method")
        .reset_index()
        .assign(label="one", target_condition="treated"),
        "prediction",
    ),
    "metrics.log_normalized": lambda given: trvae.metrics.log_normalized(
        given.cells, target_sum=100.0
    ),
    "metrics.median_library_size": lambda given: trvae.metrics.median_library_size(given.cells),
    "datasets.simulated": lambda given: trvae.datasets.simulated(n_cells=5),
    "datasets.kang18": lambda given: trvae.datasets.kang18(),
    "datasets.stroke_digits": lambda given: trvae.datasets.stroke_digits(),
    "datasets.image_folder": lambda given: trvae.datasets.image_folder(given.folder / "images"),
    "datasets.celeba": lambda given: trvae.datasets.celeba(
        given.folder / "celeba", size=8, progress_bar=False
    ),
}
for name, target, transferring, others in (
    ("TRVAE", "treated", TRANSFER | OF_GENES, REPRESENT | OF_EXPRESSION),
    (
        "ImageTRVAE",
        "thick",
        TRANSFER | {"get_transferred_images": {}, "get_interpolated_images": {}},
        REPRESENT,
    ),
    ("TRVAEEnsemble", "treated", TRANSFER | OF_GENES, {}),
):
    to_target = {
        method: {"target_condition": target} | kwargs for method, kwargs in transferring.items()
    }
    for method, kwargs in (to_target | others).items():
        CALLS[f"{name}.{method}"] = partial(ask, model=name, method=method, kwargs=kwargs)
    CALLS[f"{name}.save"] = partial(save, model=name)
    CALLS[f"{name}.load"] = partial(read, model=name, method="load")
    if name != "TRVAEEnsemble":
        CALLS[f"{name}.load_registry"] = partial(read, model=name, method="load_registry")
        CALLS[f"{name}.minify_adata"] = partial(minify, model=name)
for kind in ("transferred_images", "interpolated_images"):
    CALLS[f"pl.{kind}"] = lambda given, kind=kind: getattr(trvae.pl, kind)(
        given.ImageTRVAE, target_condition="thick", source_condition="thin", show=False
    )
X = np.random.default_rng(0).gamma(2.0, 1.0, (3, 20, 10))
T = trvae.metrics.welch_t(X[0], X[1])
for arguments, names in (
    (
        X[:2],
        "coverage energy_distance frechet_distance maximum_mean_discrepancy r2_of_means "
        "r2_of_variances rank_changed_genes rmse_of_log_fold_changes rmse_of_means "
        "wasserstein_distance welch_degrees_of_freedom welch_t",
    ),
    (X, "pearson_of_change"),
    ((T, T, X[0]), "discrimination"),
    ((T, T), "de_precision de_rank_correlation de_recall"),
    ((T, 40), "significant_genes"),
    ((T, T, 3), "de_direction de_overlap"),
    ((np.eye(9)[None].repeat(3, 1),), "stroke_thickness"),
):
    for name in names.split():
        CALLS[f"metrics.{name}"] = lambda given, name=name, arguments=arguments: getattr(
            trvae.metrics, name
        )(*arguments)


# scvi-tools' own, that compute nothing.
NOTHING_COMPUTED = {
    "convert_legacy_save", "deregister_manager", "get_anndata_manager", "get_setup_arg",
    "to_device", "view_anndata_setup", "view_setup_args",
}  # fmt: skip


def computes(class_name, member):
    static = inspect.getattr_static(getattr(trvae, class_name), member)
    return not isinstance(static, property) and member not in NOTHING_COMPUTED


def test_every_public_call_is_there():
    classes = re.findall(r"autoclass:: (\w+)\n    :members: ", reference())
    public = {
        f"{name}.{member}"
        for name in classes
        if not name.endswith("Module")
        for member in members_in_reference(name)
        if computes(name, member)
    }
    for namespace in (trvae.datasets, trvae.metrics, trvae.pl):
        public |= {
            f"{namespace.__name__.split('.')[-1]}.{name}"
            for name in namespace.__all__
            if callable(getattr(namespace, name))
        }
    assert public - set(CALLS) == set()


@pytest.mark.parametrize("name", CALLS)
def test_nothing_shared_is_changed(shared, tmp_path, name):
    call, given = CALLS[name], SimpleNamespace(**vars(shared), out=tmp_path)
    # What others load when they are first needed, they may set as they like.
    call(given)
    for path in tmp_path.glob("*"):
        path.rename(f"{path}.before")
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    before = state()
    call(given)
    after = state()
    plt.close("all")
    assert [key for key in before if before[key] != after[key]] == []
