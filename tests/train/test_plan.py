import anndata
import h5py
import numpy as np
import pytest
import scvi
import torch
from anndata.experimental import AnnCollection
from anndata.io import read_elem, sparse_dataset
from helpers import QUIET, SMALL, fit
from lightning.pytorch import Callback
from scipy import sparse
from scvi.dataloaders import CollectionAdapter

import trvae
from trvae._utils._seeds import seeded
from trvae.module._mmd import multi_scale_mmd
from trvae.train._sampling import MIN_CELLS_PER_CONDITION, ConditionBalancedSampler


def epoch(condition, batch_size, **kwargs):
    return list(ConditionBalancedSampler(np.asarray(condition), batch_size, **kwargs))


def test_every_cell_is_seen_once_if_no_condition_is_rare():
    condition = np.repeat([0, 1], [300, 200])
    minibatches = epoch(condition, 64)
    assert sorted(np.concatenate(minibatches)) == list(range(500))
    assert all((condition[b] == 1).sum() >= MIN_CELLS_PER_CONDITION for b in minibatches)


def test_rare_conditions_are_in_every_minibatch():
    condition = np.repeat([0, 1, 2], [1000, 20, 3])
    minibatches = epoch(condition, 128)
    for rare in (1, 2):
        assert all((condition[b] == rare).sum() == MIN_CELLS_PER_CONDITION for b in minibatches)
    common = np.concatenate(minibatches)
    common = common[condition[common] == 0]
    assert sorted(common) == list(range(1000))


def test_more_conditions_than_a_minibatch_has_cells():
    minibatches = epoch(np.arange(100) % 50, 16)
    assert sorted(np.concatenate(minibatches)) == list(range(100))


@pytest.mark.parametrize("n_cells", [2, 3, 17, 129, 257])
@pytest.mark.parametrize("min_per_condition", [0, 8])
def test_no_minibatch_has_a_single_cell(n_cells, min_per_condition):
    for batch_size in (2, 16, 128):
        minibatches = epoch(np.zeros(n_cells), batch_size, min_per_condition=min_per_condition)
        assert min(map(len, minibatches)) >= 2


def test_order_is_drawn_anew_each_epoch():
    sampler = ConditionBalancedSampler(np.zeros(50), 10)
    assert list(sampler) != list(sampler)


def test_too_few_cells_and_too_small_minibatches_are_refused():
    with pytest.raises(ValueError, match="at least 2 cells or images .* got 1"):
        ConditionBalancedSampler(np.zeros(1), 10)
    with pytest.raises(ValueError, match="batch_size=1 is too small"):
        ConditionBalancedSampler(np.zeros(10), 1)


def test_balancing_is_on_when_it_matters(adata):
    treated = np.flatnonzero(adata.obs["condition"] == "treated")
    rare = adata[np.setdiff1d(np.arange(adata.n_obs), treated[4:])].copy()

    def condition_counts(data, **train):
        model = fit(data, train={"max_epochs": 1, "batch_size": 32, "train_size": 1.0} | train)
        loader = model.trainer.train_dataloader
        return [int((b["batch"] == 1).sum()) for b in loader]

    assert set(condition_counts(rare)) == {MIN_CELLS_PER_CONDITION}
    assert sum(condition_counts(rare, condition_balanced=False)) == 4
    # Half of the cells are treated: chance will do.
    assert len(set(condition_counts(adata))) > 1


def test_history_has_every_term_for_training_and_validation(trained):
    for mode in ("train", "validation"):
        terms = {
            term: trained.history[f"{term}_{mode}"].to_numpy().ravel().astype(float)
            for term in ("reconstruction_loss", "kl_local", "mmd", "elbo", "objective")
        }
        assert all(np.isfinite(values).all() and len(values) == 100 for values in terms.values())
        np.testing.assert_allclose(
            terms["elbo"], terms["reconstruction_loss"] + terms["kl_local"], rtol=1e-5
        )
        np.testing.assert_allclose(
            terms["objective"],
            terms["elbo"] + trained.module.mmd_weight * terms["mmd"],
            rtol=1e-4,
        )
    assert trained.history["train_loss"].iloc[-1, 0] < trained.history["train_loss"].iloc[0, 0]


def test_kl_warm_up_follows_the_number_of_epochs(adata):
    weights = fit(adata, train={"max_epochs": 8}).history["kl_weight"].to_numpy().ravel()
    np.testing.assert_allclose(weights.astype(float), [0, 0.5, 1, 1, 1, 1, 1, 1])
    plan = {"n_epochs_kl_warmup": None, "max_kl_weight": 0.3}
    weights = fit(adata, train={"max_epochs": 2, "plan_kwargs": plan}).history["kl_weight"]
    np.testing.assert_allclose(weights.to_numpy().ravel().astype(float), 0.3)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_follows_its_schedule(adata, schedule):
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    plan = {"lr": 0.01, "lr_schedule": schedule}
    fit(adata, train={"max_epochs": 3, "plan_kwargs": plan, "callbacks": [Watch()]})
    share = np.arange(len(rates)) / len(rates)
    expected = (1 + np.cos(np.pi * share)) / 2 if schedule == "cosine" else np.ones(len(rates))
    np.testing.assert_allclose(rates, 0.01 * expected)


def test_early_stopping_watches_the_mmd(adata):
    model = fit(
        adata, train={"max_epochs": 50, "early_stopping": True, "early_stopping_patience": 1}
    )
    assert model.trainer.early_stopping_callback.monitor == "objective_validation"
    assert len(model.history["objective_validation"]) < 50


def test_same_seed_same_weights(adata):
    one, other = fit(adata, seed=3), fit(adata, seed=3)
    for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b)
    different = fit(adata, seed=4)
    assert not torch.equal(one.module.encoder.mean.weight, different.module.encoder.mean.weight)


def test_same_seed_same_weights_with_several_threads():
    # Large enough for torch to share the work of one operation among threads.
    adata = trvae.datasets.simulated(n_cells=50, n_genes=600)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        one, other = fit(adata, seed=3), fit(adata, seed=3)
    finally:
        torch.set_num_threads(n_threads)
    for (name, a), b in zip(one.module.named_parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("workers", ["splitter", "settings"])
def test_same_seed_same_weights_with_any_number_of_workers(adata, monkeypatch, workers):
    alone = fit(adata, seed=3)
    if workers == "settings":
        monkeypatch.setattr(scvi.settings, "dl_num_workers", 2)
    several = {"datasplitter_kwargs": {"num_workers": 2}} if workers == "splitter" else {}
    other = fit(adata, seed=3, train=several)
    for (name, a), b in zip(
        alone.module.named_parameters(), other.module.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    for ask in ("get_latent_representation", "get_transferred_expression", "transfer"):
        given = () if ask == "get_latent_representation" else (None, "treated")
        one, same = (getattr(model, ask)(*given) for model in (alone, other))
        if ask == "transfer":
            one, same = one.X.toarray(), same.X.toarray()
        np.testing.assert_array_equal(np.asarray(one), np.asarray(same), err_msg=ask)


def test_seeding_leaves_the_generators_as_they_were():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    with seeded(0):
        torch.rand(3)
        np.random.rand(3)
        assert scvi.settings.seed == 0
    assert scvi.settings.seed is None
    assert (torch.rand(1), np.random.rand()) == expected


def test_training_does_not_change_the_global_generators(adata):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(adata, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_mmd_weight_pulls_conditions_together(adata):
    # Without a KL divergence nothing but the MMD holds the conditions together.
    train = {"max_epochs": 80, "plan_kwargs": {"max_kl_weight": 0.0, "lr": 3e-3}}
    condition = torch.as_tensor((adata.obs["condition"] == "treated").to_numpy())
    mmd = {}
    for weight in (0.0, 100.0):
        kwargs = {"mmd_layer": "latent", "mmd_within_labels": False}
        model = fit(adata, mmd_weight=weight, train=train, **kwargs)
        z = torch.as_tensor(model.get_latent_representation())
        mmd[weight] = multi_scale_mmd(z, condition)
    assert mmd[100.0] < 0.5 * mmd[0.0]


def _saved_in_two_files(adata, folder):
    adata.layers["counts"] = adata.X.copy()
    half = np.arange(adata.n_obs) < adata.n_obs // 2
    paths = [folder / "1.h5ad", folder / "2.h5ad"]
    for path, cells in zip(paths, (adata[half], adata[~half]), strict=True):
        cells.copy().write_h5ad(path)
    return [anndata.read_h5ad(path, backed="r") for path in paths]


def _opened(path):
    file = h5py.File(path)
    counts = sparse_dataset(file["X"])
    obs, var = read_elem(file["obs"]), read_elem(file["var"])
    return anndata.AnnData(counts, obs=obs, var=var, layers={"counts": counts})


@pytest.mark.parametrize("source", ["one backed file", "two files", "two files, counts on disk"])
def test_training_on_files_is_training_in_memory(adata, tmp_path, source):
    layer = {}
    if source == "one backed file":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        files = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    else:
        layer = {"layer": "counts"}
        adata.X = sparse.csr_matrix(adata.X)
        parts = _saved_in_two_files(adata, tmp_path)
        if source == "two files, counts on disk":
            parts = [_opened(part.filename) for part in parts]
        files = CollectionAdapter(
            AnnCollection(parts, join_vars="inner", join_obs="inner", label="file")
        )
    models = []
    for cells in (adata, files):
        trvae.TRVAE.setup_anndata(
            cells, condition_key="condition", labels_key="cell_type", **layer
        )
        models.append(trvae.TRVAE(cells, seed=0, **SMALL))
        models[-1].train(max_epochs=10, **QUIET)
    losses = [float(model.history["train_loss"].iloc[-1, 0]) for model in models]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(models[1].mean_profiles_, models[0].mean_profiles_)
    means = [model.get_transferred_expression(adata[:80], "treated").mean() for model in models]
    assert np.corrcoef(*means)[0, 1] > 0.98


def test_a_collection_of_files_needs_a_layer(adata, tmp_path):
    cells = CollectionAdapter(AnnCollection(_saved_in_two_files(adata, tmp_path)))
    with pytest.raises(ValueError, match="Name the layer"):
        trvae.TRVAE.setup_anndata(cells, condition_key="condition")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson", "normal"])
def test_all_is_finite_for_tiny_and_huge_libraries(adata, gene_likelihood, precision):
    rng = np.random.default_rng(0)
    share = adata.layers["rate"] / adata.layers["rate"].sum(1, keepdims=True)
    counts = rng.poisson(share * np.logspace(0, 6, adata.n_obs)[:, None]).astype(np.float32)
    # Cells of one count, and a gene of a million.
    counts[::50] = np.eye(adata.n_vars)[0]
    counts[::7, 1] = 1e6
    adata.X = np.log1p(counts) if gene_likelihood == "normal" else counts
    model = fit(
        adata, gene_likelihood=gene_likelihood, train={"max_epochs": 3, "precision": precision}
    )
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    assert np.isfinite(model.history["validation_loss"].to_numpy(dtype=float)).all()
    assert np.isfinite(model.get_transferred_expression(adata, "treated")).all(axis=None)
    drawn = model.transfer(adata, "treated").X
    assert np.isfinite(drawn).all()
    model.module.train()
    tensors = next(iter(model._make_data_loader(model.adata)))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = model.module(tensors)[2].loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.module.parameters())
