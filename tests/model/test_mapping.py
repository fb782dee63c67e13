"""Queries: they learn their condition, leave the reference as it is, and are matched with it."""

from functools import partial

import anndata
import numpy as np
import pytest
import torch
from helpers import LONG, QUIET, copied, fit, on_device, untrained

import trvae
from trvae.module._mmd import multi_scale_mmd


@pytest.fixture(scope="module")
def reference_and_query():
    """A reference of two conditions, and a third one to map. Not to be changed."""
    conditions = ("control", "treated", "other")
    cells = trvae.datasets.simulated(n_cells=60, n_genes=60, conditions=conditions)
    is_query = cells.obs["condition"] == "other"
    return fit(cells[~is_query], train=LONG), cells[is_query].copy()


@pytest.mark.parametrize("unfrozen", [False, True])
@pytest.mark.parametrize("match_reference", [False, True])
def test_a_saved_query_is_trained_as_it_was(
    reference_and_query, tmp_path, match_reference, unfrozen
):
    reference, query = reference_and_query
    kwargs = {"match_reference": match_reference, "unfrozen": unfrozen}
    mapped = trvae.TRVAE.load_query_data(query, reference, **kwargs)
    mapped.train(max_epochs=2, **QUIET)
    mapped.save(tmp_path / "mapped")
    loaded = trvae.TRVAE.load(tmp_path / "mapped", query)
    before = copied(loaded.module)
    assert "reference_z" not in before
    loaded.train(max_epochs=2, **QUIET)
    conditions = np.unique(loaded.reference_cells_["condition"])
    np.testing.assert_array_equal(conditions, [2] if unfrozen else [0, 1, 2])
    assert loaded.module._has_reference == match_reference
    for name, known in reference.module.state_dict().items():
        after = loaded.module.state_dict()[name]
        assert unfrozen or torch.equal(after[: len(known)], known), name
        if len(after) > len(known):
            assert not torch.equal(after[len(known) :], before[name][len(known) :]), name
    if not unfrozen:
        for ask in ("get_latent_representation", "get_mmd_representation"):
            ours, theirs = (getattr(one, ask)(reference.adata) for one in (loaded, reference))
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
@pytest.mark.parametrize(
    "plan_kwargs",
    [
        {"weight_decay": 1e-1},
        {"weight_decay": 1e-1, "optimizer": "AdamW"},
        {
            "optimizer": "Custom",
            "optimizer_creator": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=0.1),
        },
    ],
    ids=["Adam", "AdamW", "SGD with momentum"],
)
def test_no_optimizer_moves_the_reference(
    reference_and_query, tmp_path, normalization, plan_kwargs
):
    trained, query = reference_and_query
    settings = {"normalization": normalization, "train": {"max_epochs": 1}}
    reference = fit(trained.adata.copy(), **settings)
    known = copied(reference.module)
    mapped = trvae.TRVAE.load_query_data(query, reference)
    checkpoints = {"checkpoint_dir": tmp_path}
    mapped.train(max_epochs=2, plan_kwargs=plan_kwargs, **checkpoints, **QUIET)
    mapped.train(max_epochs=3, plan_kwargs=plan_kwargs, resume_from=tmp_path, **QUIET)
    for name, after in mapped.module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(after[: len(known[name])], known[name]), name
    decoded = {"target_condition": "treated", "estimate": "decoded", "return_numpy": True}
    ours, theirs = (
        model.get_transferred_expression(reference.adata, **decoded)
        for model in (mapped, reference)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_a_query_learns_its_condition(reference_and_query):
    reference, _ = reference_and_query
    cells = {
        name: reference.adata[reference.adata.obs["condition"] == name].copy()
        for name in ("control", "treated")
    }
    cells["again"] = cells.pop("treated")
    cells["again"].obs["condition"] = "again"
    mapped = trvae.TRVAE.load_query_data(cells["again"], reference)
    # What is predicted is the network's own.
    mapped.linear_weight = 0.0
    log_mean = {name: np.log(np.ravel(group.X.mean(0))) for name, group in cells.items()}
    change = np.linalg.norm(log_mean["again"] - log_mean["control"])

    def missed(source, target):
        """Error of the predicted mean, as a share of the change."""
        predicted = mapped.transfer(cells[source], target, source_condition=source)
        error = np.log(np.ravel(predicted.X.mean(0))) - log_mean[target]
        return np.linalg.norm(error) / change

    directions = [("control", "again"), ("again", "control")]
    mapped.train(max_epochs=1, plan_kwargs={"lr": 0.0}, **QUIET)
    assert all(missed(*direction) > 0.3 for direction in directions)
    mapped.train(max_epochs=80, plan_kwargs={"lr": 2e-2}, check_val_every_n_epoch=10, **QUIET)
    assert all(missed(*direction) < 0.1 for direction in directions)


@pytest.mark.parametrize("match_reference", [False, True])
def test_a_query_of_one_condition_has_the_reference_to_match(reference_and_query, match_reference):
    reference, query = reference_and_query
    model = trvae.TRVAE.load_query_data(query, reference, match_reference=match_reference)
    # Nothing but the MMD has a gradient.
    model.module.mmd_weight = 1e12
    tensors = on_device(next(iter(model._make_data_loader(model.adata))))
    _, _, loss = model.module(tensors)
    loss.loss.backward()
    _, new = model.module.encoder.hidden.layers[0].map.condition.weight.grad.split([2, 1])
    assert (new.abs().max() > 1e6) == match_reference


def test_known_conditions_in_a_query_have_no_gradient(reference_and_query):
    """Not even the norm of gradients, by which they may be clipped, has what can't change."""
    reference, query = reference_and_query
    model = trvae.TRVAE.load_query_data(
        anndata.concat([reference.adata[::6], query[::3]]), reference
    )
    tensors = on_device(next(iter(model._make_data_loader(model.adata))))
    assert len(tensors["batch"].unique()) == 3
    _, _, loss = model.module(tensors)
    loss.loss.backward()
    known, new = model.module.encoder.hidden.layers[0].map.condition.weight.grad.split([2, 1])
    assert (known == 0).all() and (new != 0).any()


def test_term_of_the_reference_is_the_mmd_with_it(reference_and_query):
    reference, query = reference_and_query
    model = trvae.TRVAE.load_query_data(query, reference, match_reference=True)
    tensors = on_device(next(iter(model._make_data_loader(model.adata, batch_size=180))))
    module = model.module.eval()
    kept = {name: torch.as_tensor(v) for name, v in reference.reference_cells_.items()}
    torch.manual_seed(0)
    _, generated, loss = module(tensors)
    torch.manual_seed(0)
    module.inference(**module._get_inference_input(tensors))
    kept = on_device(kept)
    chosen = torch.randint(len(kept["label"]), (180,), device=kept["label"].device)
    kept = {name: values[chosen] for name, values in kept.items()}
    expected = multi_scale_mmd(
        torch.cat([generated["first_layer"], kept["first_layer"]]),
        torch.cat([tensors["batch"].flatten(), kept["condition"]]),
        torch.cat([tensors["labels"].flatten(), kept["label"]]),
    )
    torch.testing.assert_close(loss.extra_metrics["mmd"], expected)


def test_the_sample_is_of_the_reference(reference_and_query):
    reference, _ = reference_and_query
    kept, module = reference.reference_cells_, reference.module
    assert len(kept["label"]) == 360
    latent = reference.get_latent_representation()
    order = np.lexsort(latent.T), np.lexsort(kept["z_mean"].T)
    np.testing.assert_allclose(kept["z_mean"][order[1]], latent[order[0]], atol=1e-5)
    decoded = module.generative(
        torch.as_tensor(kept["z"]),
        torch.zeros(360, 1),
        torch.as_tensor(kept["condition"])[:, None],
    )
    first_layer = decoded["first_layer"].detach().cpu()
    np.testing.assert_allclose(first_layer, kept["first_layer"], atol=1e-5)


def test_what_cannot_be_matched(reference_and_query, monkeypatch):
    reference, query = reference_and_query
    unknown = query.copy()
    unknown.obs["cell_type"] = "unknown"
    with pytest.raises(ValueError, match=r"labels \('unknown'\) are not among .*: 'type_0'"):
        trvae.TRVAE.load_query_data(unknown, reference, match_reference=True)
    monkeypatch.setattr(reference, "reference_cells_", None)
    with pytest.raises(ValueError, match="No training cells are kept"):
        trvae.TRVAE.load_query_data(query, reference, match_reference=True)
    with pytest.raises(ValueError, match="No training cells are kept"):
        reference.get_transfer_support(None, "treated")
    with pytest.raises(ValueError, match="Pass reference_model"):
        trvae.TRVAE.load_query_data(query)


def test_what_was_never_trained_is_no_reference(reference_and_query):
    reference, query = reference_and_query
    mapped = trvae.TRVAE.load_query_data(query, reference)
    for untrained_reference in (untrained(reference.adata.copy()), mapped):
        with pytest.raises(RuntimeError, match="reference is not trained"):
            trvae.TRVAE.load_query_data(query, untrained_reference)
    assert not mapped.is_trained


def test_a_query_resumes_only_on_its_reference(reference_and_query, tmp_path):
    reference, query = reference_and_query
    settings = {"max_epochs": 2} | QUIET
    mapped = trvae.TRVAE.load_query_data(query, reference)
    mapped.train(**settings, checkpoint_dir=tmp_path)
    other = fit(reference.adata, train={"max_epochs": 1})
    for its, kwargs, differing in (
        (other, {}, "reference"),
        (reference, {"match_reference": True}, "match_reference"),
        (reference, {"unfrozen": True}, "unfrozen"),
    ):
        again = trvae.TRVAE.load_query_data(query, its, **kwargs)
        with pytest.raises(ValueError, match=f"another training, which differs in {differing}"):
            again.train(**settings, resume_from=tmp_path)
    mapped.save(tmp_path / "mapped")
    trvae.TRVAE.load(tmp_path / "mapped", query).train(**settings, resume_from=tmp_path)
