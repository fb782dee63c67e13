"""Plots: what is drawn, how it looks and what comes back.

``tests/data/images`` has one picture a plot, drawn from given values. After a change of how a plot
looks, draw them anew, look at them and commit them::

    TRVAE_DRAW_BASELINES=1 pytest tests/test_pl.py -k looks_as
"""

import os
import shutil
from itertools import combinations
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import FIXTURES, QUIET, fit
from matplotlib.colors import to_hex
from matplotlib.testing.compare import compare_images

import trvae
from trvae.pl._colors import styles

mpl.use("agg")

IMAGES = FIXTURES / "images"
# Root mean square of the differences in grey levels. Without letters there are none between
# matplotlib 3.10 and 3.11, and the smallest of a plot of other data is 2.
TOLERANCE = 1


@pytest.fixture(autouse=True)
def _defaults():
    with mpl.rc_context(mpl.rcParamsDefault), mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


@pytest.fixture
def groups(adata):
    treated = adata.obs["condition"] == "treated"
    return adata[treated].copy(), adata[treated][::2].copy(), adata[~treated].copy()


@pytest.fixture(scope="module")
def model():
    return fit(trvae.datasets.simulated(n_cells=15, n_genes=20), train={"max_epochs": 2})


# --------------------------------------------------------------------------------- looks


def given_groups(change=0.0):
    """Log-normalised values of 3 labels; of the last none are observed."""
    cell, gene = np.indices((36, 9))
    label = pd.Categorical(np.repeat(["B cells", "T cells", "NK"], 12))
    noise = ((7 * cell + 5 * gene) % 11) / 11
    control = np.maximum(0.3 * gene + noise - 0.7, 0)
    effect = np.where(gene % 3 == 0, 0.5 + 0.2 * gene, 0)
    observed = control + (effect + 0.1 * (cell // 12)) * noise
    predicted = control + (0.8 * effect + 0.1) * noise[::-1]
    predicted[:, 6] += change

    def cells(values, keep=slice(None)):
        obs = pd.DataFrame({"cell_type": label}, index=[f"cell_{i}" for i in range(36)])
        var = pd.DataFrame(index=[f"gene_{i}" for i in range(9)])
        return AnnData(values, obs=obs, var=var)[keep].copy()

    return cells(predicted), cells(observed, label != "NK"), cells(control)


def given_coordinates(values, *_):
    """Two half circles a representation, so that nothing is computed."""
    angle = np.linspace(0, 2 * np.pi, len(values))
    return np.column_stack([np.cos(angle), np.sin(2 * angle)]) * (1 + values[:, :1])


def given_model(change=0.0, n_cells=60):
    """What is asked of a model, with values that are known."""
    cell = np.arange(n_cells)
    values = 0.1 * (cell[:, None] % np.array([3, 5, 7]))
    values[: n_cells // 6] += change
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(np.where(cell % 2 == 0, "control", "treated")),
            "cell_type": pd.Categorical.from_codes(3 * cell // n_cells, ["B", "NK", "T"]),
        },
        index=[f"cell_{i}" for i in cell],
    )
    return SimpleNamespace(
        adata=AnnData(values, obs=obs),
        registry={"setup_args": {"condition_key": "condition", "labels_key": "cell_type"}},
        get_latent_representation=lambda _, indices: values[indices],
        get_mmd_representation=lambda _, indices: -values[indices],
        history=given_history(change),
    )


def given_history(change=0.0, n_epochs=12):
    epoch = pd.Index(range(n_epochs), name="epoch")
    level = {"objective": 300, "reconstruction_loss": 280, "kl_local": 12, "mmd": 0.1}
    return {
        f"{term}_{kind}": pd.DataFrame(
            # As Lightning's values are kept.
            {term: np.array(size * (1 + (1 + change) / (2 + epoch) + i / 10), dtype=object)},
            index=epoch,
        )
        for term, size in level.items()
        for i, kind in enumerate(["train", "validation"])
    }


def by_label(change, **kwargs):
    return trvae.pl.response_by_label(
        *given_groups(change), labels_key="cell_type", n_genes=3, title="Title", **kwargs
    )


def given_image_model(change=0.0):
    """What is asked of a model of images, which are squares on a slope."""
    conditions = ["thin", "normal", "thick"]
    row, column = np.indices((8, 8))
    images = np.stack(
        [(row + column) / 60 * (1 + ((row > i) & (column > i))) for i in range(6)]
    ).reshape(6, 64)
    images[:2] += change
    obs = pd.DataFrame({"condition": ["normal"] * 6}, index=[f"image_{i}" for i in range(6)])
    adata = AnnData(images, obs=obs)

    def get_images(cells, indices):
        return cells.X[indices].reshape(-1, 8, 8, 1)

    return SimpleNamespace(
        adata=adata,
        conditions=conditions,
        image_shape=(8, 8, 1),
        registry={"setup_args": {"condition_key": "condition"}},
        get_images=get_images,
        get_transferred_images=lambda cells, targets, indices, **_: np.stack(
            [get_images(cells, indices) * scale for scale in (0.5, 0.9)]
        ),
        get_interpolated_images=lambda cells, target, indices, n_steps, **_: np.stack(
            [get_images(cells, indices) * scale for scale in np.linspace(0.2, 1, n_steps)]
        ),
    )


# Each is given a change that a reader would have to see.
DRAWINGS = {
    "mean_scatter": lambda change, **kwargs: trvae.pl.mean_scatter(
        *given_groups(change), statistic="both", n_genes=3, title="Title", **kwargs
    ),
    "response": lambda change, **kwargs: trvae.pl.response(
        *given_groups(change), n_genes=3, title="Title", **kwargs
    ),
    "response_dots": lambda change, **kwargs: by_label(change, kind="dot", **kwargs),
    "response_violins": lambda change, **kwargs: by_label(change, kind="violin", **kwargs),
    "umap": lambda change, **kwargs: trvae.pl.umap(given_model(change), **kwargs),
    "history": lambda change, **kwargs: trvae.pl.history(given_model(change), **kwargs),
    "transferred_images": lambda change, **kwargs: trvae.pl.transferred_images(
        given_image_model(change), n_images=4, title="Title", **kwargs
    ),
    "interpolated_images": lambda change, **kwargs: trvae.pl.interpolated_images(
        given_image_model(change), target_condition="thick", title="Title", **kwargs
    ),
}
drawings = pytest.mark.parametrize("name", DRAWINGS)


N_PANELS = {"mean_scatter": (1, 2), "umap": (2, 2), "history": (2, 2)}


@pytest.fixture
def draw(monkeypatch):
    monkeypatch.setattr("trvae.pl._umap._umap_coordinates", given_coordinates)

    def drawn(name, change=0.0, **kwargs):
        return DRAWINGS[name](change, return_fig=True, **kwargs)

    return drawn


@pytest.fixture
def draw_picture(draw, tmp_path):
    """Draw without letters, which differ between versions, and where none moves anything."""

    def picture(name, change=0.0):
        n_rows, n_columns = N_PANELS.get(name, (1, 1))
        figure, axes = plt.subplots(n_rows, n_columns, figsize=(4.4 * n_columns, 3.4 * n_rows))
        figure.subplots_adjust(0.16, 0.16, 0.78, 0.9, 0.9, 0.4)
        draw(name, change, ax=axes)
        figure.draw_without_rendering()
        for artist in [*figure.findobj(mpl.text.Text), *figure.findobj(mpl.legend.Legend)]:
            artist.set_visible(False)
        path = tmp_path / f"{name}.png"
        figure.savefig(path, dpi=50, metadata={"Software": None})
        return path

    return picture


@drawings
def test_plot_looks_as_before(draw_picture, name):
    path = draw_picture(name)
    if "TRVAE_DRAW_BASELINES" in os.environ:
        shutil.copy(path, IMAGES)
    assert compare_images(str(IMAGES / path.name), str(path), TOLERANCE) is None


@drawings
def test_plot_of_other_data_looks_different(draw_picture, name):
    path = draw_picture(name, change=0.3)
    told = compare_images(str(IMAGES / path.name), str(path), TOLERANCE)
    assert "Image files did not match" in told


def texts_of(ax):
    """Texts that are seen."""
    yield from [*ax.texts, ax.title, ax._left_title]
    if ax.axison:
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            yield axis.label
            for tick in axis.get_major_ticks():
                if min(limits) <= tick.get_loc() <= max(limits):
                    yield tick.label1
                    yield tick.label2
    if ax.get_legend() is not None:
        yield from [ax.get_legend().get_title(), *ax.get_legend().get_texts()]
    for child in ax.child_axes:
        yield from texts_of(child)


@drawings
def test_texts_are_legible(draw, name):
    figure = draw(name)
    figure.draw_without_rendering()
    texts = [
        text
        for ax in figure.axes
        for text in texts_of(ax)
        if text.get_visible() and text.get_text().strip()
    ]
    assert len(texts) > 3
    assert min(text.get_fontsize() for text in texts) >= 7
    boxes = {text: mpl.text.Text.get_window_extent(text) for text in texts}
    overlapping = [
        (one.get_text(), other.get_text())
        for one, other in combinations(texts, 2)
        if boxes[one].overlaps(boxes[other])
    ]
    assert not overlapping
    for text, box in boxes.items():
        assert figure.bbox.padded(1).contains(*box.min), text
        assert figure.bbox.padded(1).contains(*box.max), text


def test_styles_differ():
    groups = [f"group_{i}" for i in range(56)]
    assert len(set(styles(groups, "x").values())) == 56
    with pytest.raises(ValueError, match="x has too many values to tell apart, at most 56: 'gr"):
        styles([*groups, "one more"], "x")


# ------------------------------------------------------------------------------- scatter


def named_genes(ax):
    return {text.get_text() for text in ax.texts if text.get_text().startswith("gene_")}


def test_means_are_where_they_belong(groups):
    predicted, observed, control = groups
    ax = trvae.pl.mean_scatter(predicted, observed, control, show=False)
    x, y = ax.collections[0].get_offsets().T
    scale = {"target_sum": trvae.metrics.median_library_size(control)}
    np.testing.assert_allclose(x, trvae.metrics.log_normalized(observed, **scale).mean(0))
    np.testing.assert_allclose(y, trvae.metrics.log_normalized(predicted, **scale).mean(0))
    assert ax.get_xlabel() == "observed mean of log-normalised expression"
    assert "R^2" in ax.texts[0].get_text()


def test_genes_that_change_most_are_named(groups):
    predicted, observed, control = groups
    change = trvae.pl.response(predicted, observed, control, n_genes=3, show=False)
    x, _ = change.collections[0].get_offsets().T
    largest = {observed.var_names[i] for i in np.argsort(-np.abs(x))[:3]}
    assert named_genes(change) == largest
    chosen = trvae.pl.response(predicted, observed, control, genes=["gene_4"], show=False)
    assert named_genes(chosen) == {"gene_4"}


def test_many_names_in_small_axes_do_not_overlap(groups):
    _, ax = plt.subplots(figsize=(3, 3), dpi=200)
    trvae.pl.response(*groups, n_genes=16, ax=ax)
    ax.figure.draw_without_rendering()
    boxes = [mpl.text.Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 17
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_variances(groups):
    means, variances = trvae.pl.mean_scatter(*groups, statistic="both", show=False)
    assert means.get_ylabel().startswith("predicted mean")
    assert variances.get_ylabel().startswith("predicted variance")
    alone = trvae.pl.mean_scatter(*groups, statistic="variance", show=False)
    for one, other in zip(alone.collections, variances.collections, strict=True):
        np.testing.assert_array_equal(one.get_offsets(), other.get_offsets())


def test_output(groups, tmp_path):
    _, given = plt.subplots()
    assert trvae.pl.response(*groups, ax=given) is given
    figure = trvae.pl.response(*groups, return_fig=True)
    assert isinstance(figure, mpl.figure.Figure)
    trvae.pl.mean_scatter(*groups, save=tmp_path / "means.png")
    assert (tmp_path / "means.png").stat().st_size > 5_000
    assert trvae.pl.mean_scatter(*groups, show=True) is None


def test_subfigures_are_drawn_into(groups, tmp_path):
    figure = plt.figure(layout="constrained")
    left, _ = figure.subfigures(1, 2)
    ax = left.subplots()
    trvae.pl.response(*groups, ax=ax, save=tmp_path / "whole.pdf")
    assert (tmp_path / "whole.pdf").read_bytes().startswith(b"%PDF")
    assert trvae.pl.response(*groups, ax=ax, return_fig=True) is figure


def test_wrong_arguments(groups):
    with pytest.raises(ValueError, match="statistic='median' is not one of 'mean', 'variance'"):
        trvae.pl.mean_scatter(*groups, statistic="median")
    with pytest.raises(ValueError, match="not in var_names: 'ACTB'"):
        trvae.pl.response(*groups, genes=["gene_1", "ACTB"])
    with pytest.raises(ValueError, match="n_genes=-1 is not an integer from 0 on"):
        trvae.pl.response(*groups, n_genes=-1)
    _, axes = plt.subplots(1, 3)
    with pytest.raises(ValueError, match="is not a list of 2 Axes, one a panel"):
        trvae.pl.mean_scatter(*groups, statistic="both", ax=axes)
    with pytest.raises(ValueError, match="ax='left' is not one Axes"):
        trvae.pl.response(*groups, ax="left")


# ------------------------------------------------------------------------- response by label

KEY = {"labels_key": "cell_type", "show": False}


def test_dots_are_means_and_shares(groups):
    predicted, observed, control = groups
    ax = trvae.pl.response_by_label(*groups, genes=["gene_3", "gene_0"], **KEY)
    (dots,) = ax.collections
    scale = {"target_sum": trvae.metrics.median_library_size(control)}
    means, shares = [], []
    for label in ("type_0", "type_1", "type_2"):
        for cells in (control, predicted, observed):
            own = cells[cells.obs["cell_type"] == label]
            values = trvae.metrics.log_normalized(own, **scale)[:, [3, 0]]
            means += list(values.mean(0))
            shares += list((values > 0).mean(0))
    np.testing.assert_allclose(dots.get_array(), means)
    np.testing.assert_allclose(dots.get_sizes() / dots.get_sizes().max(), shares / max(shares))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["gene_3", "gene_0"]
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows == ["control", "predicted", "observed"] * 3
    assert [text.get_text() for text in ax.texts] == ["type_0", "type_1", "type_2"]
    for text, handle in zip(
        ax.get_legend().get_texts(), ax.get_legend().legend_handles, strict=True
    ):
        share = float(text.get_text()) / 100
        assert handle.get_markersize() ** 2 == pytest.approx(
            share * dots.get_sizes().max() / max(shares)
        )


def test_labels_never_measured_have_no_observed_row():
    ax = by_label(0.0, labels=["NK", "B cells"], show=False)
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows == ["control", "predicted", "control", "predicted", "observed"]
    assert [text.get_text() for text in ax.texts] == ["NK", "B cells"]


def test_genes_drawn_are_those_that_change_most():
    predicted, observed, control = given_groups()
    ax = by_label(0.0, show=False)
    after = [
        observed[observed.obs["cell_type"] == label].X.mean(0) for label in ("B cells", "T cells")
    ]
    after.append(predicted[24:].X.mean(0))
    before = control.X.reshape(3, 12, 9).mean(1)
    largest = np.argsort(-np.abs(after - before).mean(0))[:3]
    assert [text.get_text() for text in ax.get_xticklabels()] == [f"gene_{i}" for i in largest]


def test_violins_are_of_the_cells():
    predicted, _, _ = given_groups()
    ax = by_label(0.0, kind="violin", show=False)
    assert len(ax.child_axes) == 3
    for panel in ax.child_axes:
        position = int(panel.get_ylabel().removeprefix("gene_"))
        bodies = [c for c in panel.collections if isinstance(c, mpl.collections.PolyCollection)]
        # Control and predicted cells of three labels, observed cells of two.
        assert len(bodies) == 8
        outline = bodies[1].get_paths()[0].vertices[:, 1]
        values = predicted[:12].X[:, position]
        assert outline.min() == pytest.approx(values.min())
        assert outline.max() == pytest.approx(values.max())
        fills = [to_hex(body.get_facecolor()[0]) for body in bodies]
        groups = ["control", "predicted", "observed"]
        legend = dict(zip(groups, ax.get_legend().legend_handles, strict=False))
        color = {group: to_hex(handle.get_facecolor()) for group, handle in legend.items()}
        without_nk = [*groups, *groups[:2], *groups]
        assert fills == [color[group] for group in without_nk]
        assert len(set(fills)) == 3
    names = [text.get_text() for text in panel.get_xticklabels()]
    assert names == ["B cells", "NK", "T cells"]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["control", "predicted", "observed", "mean"]


def test_given_axes_take_a_response_by_label():
    for kind in ("dot", "violin"):
        _, given = plt.subplots()
        assert by_label(0.0, kind=kind, ax=given) is given


def test_wrong_labels(groups):
    predicted, observed, control = groups

    def without(cells, *labels):
        return cells[~cells.obs["cell_type"].isin(labels)].copy()

    with pytest.raises(ValueError, match="kind='bar' is not one of 'dot', 'violin'"):
        trvae.pl.response_by_label(*groups, kind="bar", **KEY)
    del observed.obs["batch"]
    with pytest.raises(ValueError, match="observed: labels_key 'batch' is not in adata.obs: 'con"):
        trvae.pl.response_by_label(*groups, labels_key="batch")
    for labels in (["type_9"], []):
        with pytest.raises(ValueError, match=r"are not among the predicted: 'type_0', 'type_1'"):
            trvae.pl.response_by_label(*groups, labels=labels, **KEY)
    with pytest.raises(ValueError, match="control has no cells of 'type_1'"):
        trvae.pl.response_by_label(predicted, observed, without(control, "type_1"), **KEY)
    with pytest.raises(ValueError, match="observed has no cells of any of 'type_2'"):
        trvae.pl.response_by_label(
            predicted, without(observed, "type_2"), control, labels="type_2", **KEY
        )
    with pytest.raises(ValueError, match=r"No genes are chosen: genes=\[\], n_genes=8"):
        trvae.pl.response_by_label(*groups, genes=[], **KEY)
    with pytest.raises(ValueError, match="not in var_names: 'ACTB'"):
        trvae.pl.response_by_label(*groups, genes="ACTB", **KEY)


# ---------------------------------------------------------------------------------- UMAP


def test_cells_have_the_colour_of_their_group(draw):
    figure = draw("umap")
    obs = given_model().adata.obs
    legends = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert legends == [["control", "treated"], ["B", "NK", "T"]] * 2
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["latent representation $z$"] * 2 + ["first decoder layer"] * 2
    order = np.random.default_rng(0).permutation(60)
    for ax, key in zip(figure.axes, ["condition", "cell_type"] * 2, strict=True):
        (points,) = ax.collections
        look = {
            text.get_text(): handle.get_color()
            for text, handle in zip(
                ax.get_legend().get_texts(), ax.get_legend().legend_handles, strict=True
            )
        }
        drawn = [to_hex(color) for color in points.get_facecolor()]
        assert drawn == [to_hex(look[group]) for group in obs[key].iloc[order]]
        sign = 1 if ax in figure.axes[:2] else -1
        expected = given_coordinates(sign * given_model().adata.X)[order]
        np.testing.assert_allclose(points.get_offsets(), expected)


def separated_model():
    """Two groups of cells that lie far from each other."""
    model = given_model(n_cells=80)
    far = np.where(np.arange(80) < 40, 0, 50)[:, None]
    model.get_latent_representation = lambda _, indices: (model.adata.X + far)[indices]
    return model


def test_umap_is_the_same_for_a_seed_and_keeps_neighbours():
    def coordinates(seed):
        (points,) = trvae.pl.umap(
            separated_model(),
            representation="latent",
            color="cell_type",
            n_neighbors=10,
            seed=seed,
            show=False,
        ).collections
        order = np.random.default_rng(seed).permutation(80)
        return points.get_offsets()[np.argsort(order)]

    first = coordinates(0)
    np.testing.assert_array_equal(first, coordinates(0))
    assert not np.allclose(first, coordinates(1))
    distance = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert ((distance.argmin(1) < 40) == (np.arange(80) < 40)).all()


def test_umap_of_a_model(model):
    before = model.adata.copy()
    axes = trvae.pl.umap(model, n_neighbors=5, show=False)
    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [90] * 4
    assert model.adata.obsm.keys() == before.obsm.keys()
    new = trvae.datasets.simulated(n_cells=5, n_genes=20, seed=1)
    del new.obs["cell_type"]
    _, given = plt.subplots()
    chosen = new.obs["condition"] == "control"
    (points,) = trvae.pl.umap(
        model, new, representation="decoder", indices=chosen, n_neighbors=5, ax=given
    ).collections
    assert len(points.get_offsets()) == 15
    assert given.get_legend().get_title().get_text() == "condition"


def test_wrong_umaps(model, monkeypatch):
    monkeypatch.setattr("trvae.pl._umap._umap_coordinates", given_coordinates)
    with pytest.raises(ValueError, match="representation='z' is not one of 'latent', 'decoder'"):
        trvae.pl.umap(model, representation="z")
    with pytest.raises(ValueError, match="color 'donor' is not in adata.obs: 'condition'"):
        trvae.pl.umap(model, color=["condition", "donor"])
    with pytest.raises(ValueError, match=r"color=\[\] names no column"):
        trvae.pl.umap(model, color=[])
    with pytest.raises(ValueError, match="15 cells are too few for n_neighbors=15"):
        trvae.pl.umap(model, indices=range(15))
    with pytest.raises(ValueError, match="No cells are selected"):
        trvae.pl.umap(model, indices=[])
    with pytest.raises(ValueError, match="color 'number' has too many values to tell apart"):
        numbered = model.adata.copy()
        numbered.obs["number"] = np.arange(90)
        trvae.pl.umap(model, numbered, color="number")
    with pytest.raises(ValueError, match="is not a list of 4 Axes"):
        trvae.pl.umap(model, ax=plt.gca())
    without_cells = given_model()
    without_cells.adata = None
    with pytest.raises(ValueError, match="The model has no cells of its own"):
        trvae.pl.umap(without_cells)
    ensemble = trvae.TRVAEEnsemble(model.adata, n_models=2, n_latent=2)
    with pytest.raises(ValueError, match=r"TRVAEEnsemble has no .*plot that of one"):
        trvae.pl.umap(ensemble)
    with pytest.raises(RuntimeError, match="train"):
        trvae.pl.umap(ensemble.models[0])


# ------------------------------------------------------------------------------- history


def test_history_has_the_terms_of_the_loss(model):
    axes = trvae.pl.history(model, show=False)
    assert [ax.get_ylabel() for ax in axes] == [
        "objective [nats per cell]",
        "reconstruction [nats per cell]",
        "KL divergence [nats per cell]",
        "squared MMD",
    ]
    for ax, term in zip(
        axes, ["objective", "reconstruction_loss", "kl_local", "mmd"], strict=True
    ):
        for line, kind in zip(ax.lines, ["train", "validation"], strict=True):
            logged = model.history[f"{term}_{kind}"].iloc[:, 0].astype(float)
            np.testing.assert_array_equal(line.get_ydata(), logged)
            np.testing.assert_array_equal(line.get_xdata(), logged.index)
    legend = axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    for handle, line in zip(legend.legend_handles, axes[0].lines, strict=True):
        assert handle.get_color() == line.get_color()
        assert handle.get_linestyle() == line.get_linestyle()


def test_terms_are_chosen(model):
    _, given = plt.subplots(2)
    assert trvae.pl.history(model, terms=["loss", "kl_weight"], ax=given) == list(given)
    np.testing.assert_array_equal(
        given[0].lines[1].get_ydata(), model.history["validation_loss"].iloc[:, 0].astype(float)
    )
    assert len(given[1].lines) == 1
    with pytest.raises(ValueError, match=r"terms=\['elbow'\] are not among .*'elbo'"):
        trvae.pl.history(model, terms=["elbow"])
    with pytest.raises(ValueError, match=r"terms=\[\] are not among"):
        trvae.pl.history(model, terms=[])


def test_few_epochs_have_markers_and_many_have_none():
    for n_epochs, marker in ((1, "o"), (100, "None")):
        few = SimpleNamespace(history=given_history(n_epochs=n_epochs))
        ax = trvae.pl.history(few, terms="mmd", show=False)
        assert ax.lines[0].get_marker() == marker


def test_models_without_history(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    with pytest.raises(RuntimeError, match=r"TRVAE has no training history.*model.train\(\)"):
        trvae.pl.history(trvae.TRVAE(adata, n_latent=2))
    with pytest.raises(ValueError, match=r"TRVAEEnsemble has no history .*model.models\[0\]"):
        trvae.pl.history(trvae.TRVAEEnsemble(adata, n_models=2, n_latent=2))


# --------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def image_model():
    """Barely trained: what is drawn counts, not how well."""
    adata = trvae.datasets.stroke_digits()[::100].copy()
    shape = adata.uns["image_shape"]
    trvae.ImageTRVAE.setup_anndata(
        adata, condition_key="condition", labels_key="digit", image_shape=shape
    )
    model = trvae.ImageTRVAE(adata, seed=0)
    model.train(max_epochs=1, **QUIET)
    return model


def test_loss_of_images_is_per_image(image_model):
    ax = trvae.pl.history(image_model, terms="kl_local", show=False)
    assert ax.get_ylabel() == "KL divergence [nats per image]"


def image_at(ax, row, column):
    """Grey values of one of the images of 28 x 28 pixels, which are 2 apart."""
    sheet = ax.get_images()[0].get_array()
    place = sheet[row * 30 : row * 30 + 28, column * 30 : column * 30 + 28]
    assert (place[..., 3] == 1).all()
    return place[..., 0]


def test_images_are_where_they_belong(image_model):
    adata = image_model.adata
    ax = trvae.pl.transferred_images(
        image_model, source_condition="normal", observed=adata, n_images=3, show=False
    )
    names = [label.get_text() for label in ax.get_yticklabels()]
    others = [one for one in image_model.conditions if one != "normal"]
    kinds = [f"{one}, {kind}" for one in others for kind in ("predicted", "observed")]
    assert names == ["normal", *kinds]
    normal = np.flatnonzero(adata.obs["condition"] == "normal")
    shown = normal[[0, (len(normal) - 1) // 2, -1]]
    predicted = image_model.get_transferred_images(target_condition=others, indices=shown)
    for column, position in enumerate(shown):
        given = adata.X[position].reshape(28, 28) / 255
        if column != 1:  # the middle one is rounded
            np.testing.assert_allclose(image_at(ax, 0, column), given, atol=1e-6)
            for row in (1, 3):
                expected = predicted[row // 2, column, ..., 0] / 255
                np.testing.assert_allclose(image_at(ax, row, column), expected, atol=1 / 255)
    of_target = adata[adata.obs["condition"] == others[0]]
    first = of_target.X[0].reshape(28, 28) / 255
    np.testing.assert_allclose(image_at(ax, 2, 0), first, atol=1e-6)


def test_steps_are_side_by_side(image_model):
    ax = trvae.pl.interpolated_images(
        image_model, target_condition="thick", source_condition="normal", n_images=2, n_steps=4,
        show=False,
    )  # fmt: skip
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns == ["given", "normal", "", "", "thick"]
    normal = np.flatnonzero(image_model.adata.obs["condition"] == "normal")
    thick = image_model.get_transferred_images(
        target_condition="thick", indices=normal[[0, -1]], estimate="decoded"
    )
    for row, image in enumerate(thick):
        np.testing.assert_allclose(image_at(ax, row, 4), image[..., 0] / 255, atol=1 / 255)


def test_wrong_arguments_of_images(image_model, model):
    with pytest.raises(ValueError, match="n_images=0 is not a positive integer"):
        trvae.pl.transferred_images(image_model, n_images=0)
    with pytest.raises(ValueError, match="target_condition 'bold' is not one of the model's"):
        trvae.pl.transferred_images(image_model, target_condition="bold")
    with pytest.raises(ValueError, match="TRVAE is no model of images"):
        trvae.pl.interpolated_images(model, target_condition="treated")
