"""Dots and violins show the cells of each label."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import trvae

KEY = {"labels_key": "cell_type", "show": False}


def texts(labels):
    return [text.get_text() for text in labels]


def test_dots_are_means_and_shares(groups):
    predicted, observed, control = groups
    ax = trvae.pl.response_by_label(*groups, genes=["gene_3", "gene_0"], **KEY)
    scale = {"target_sum": trvae.metrics.median_library_size(control)}
    means, shares = [], []
    for label in ("type_0", "type_1", "type_2"):
        for cells in (control, predicted, observed):
            own = cells[cells.obs["cell_type"] == label]
            values = trvae.metrics.log_normalized(own, **scale)[:, [3, 0]]
            means += list(values.mean(0))
            shares += list((values > 0).mean(0))
    (dots,) = ax.collections
    colors = mpl.colormaps["Reds"](mpl.colors.Normalize()(means))
    np.testing.assert_allclose(dots.get_facecolor(), colors, atol=0.02)
    np.testing.assert_allclose(dots.get_sizes() / dots.get_sizes().max(), shares / max(shares))
    assert texts(ax.get_xticklabels()) == ["gene_3", "gene_0"]
    assert texts(ax.get_yticklabels()) == [
        f"type_{i}, {name}" for i in range(3) for name in ("control", "predicted", "observed")
    ]


def test_labels_never_measured_have_no_observed_row(given_groups):
    ax = trvae.pl.response_by_label(*given_groups(), labels=["NK", "B cells"], **KEY)
    nk = ["NK, control", "NK, predicted"]
    b_cells = ["B cells, control", "B cells, predicted", "B cells, observed"]
    assert texts(ax.get_yticklabels()) == nk + b_cells


def test_genes_drawn_are_those_that_change_most(given_groups):
    predicted, observed, control = given_groups()
    ax = trvae.pl.response_by_label(predicted, observed, control, n_genes=3, **KEY)
    after = np.concatenate([observed.X, predicted.X[24:]]).reshape(3, 12, 9).mean(1)
    before = control.X.reshape(3, 12, 9).mean(1)
    largest = np.argsort(-np.abs(after - before).mean(0))[:3]
    assert texts(ax.get_xticklabels()) == [f"gene_{i}" for i in largest]


def test_violins_show_the_cells(given_groups):
    groups = given_groups()
    for cells in groups:
        cells.X[:, 1] = 0
    genes = ["gene_8", "gene_1", "gene_3"]
    ax = trvae.pl.response_by_label(*groups, genes=genes, kind="violin", **KEY)
    assert texts(ax.get_yticklabels()) == genes
    assert texts(ax.get_xticklabels())[:2] == ["B cells, control", "B cells, predicted"]
    panels = [panel for panel in ax.figure.axes if panel.lines and panel is not ax]
    for panel, position in zip(panels, (8, 1, 3), strict=True):
        bodies = [c for c in panel.collections if isinstance(c, mpl.collections.PolyCollection)]
        values = groups[0].X[:12, position]
        means = panel.lines[-1]
        # Control and predicted cells of three labels, observed cells of two.
        assert len(means.get_ydata()) == 8
        assert means.get_ydata()[1] == pytest.approx(values.mean())
        assert panel.get_ylim()[0] == 0 < panel.get_ylim()[1]
        if values.any():
            outline = bodies[1].get_paths()[0].vertices[:, 1]
            assert outline.min() == pytest.approx(values.min())
            assert outline.max() == pytest.approx(values.max())


@pytest.mark.parametrize("kind", ["dot", "violin"])
def test_plots_take_the_place_of_given_axes(given_groups, kind):
    figure = plt.figure(figsize=(6, 4))
    given = figure.add_axes((0.5, 0.1, 0.5, 0.8))
    trvae.pl.response_by_label(*given_groups(), kind=kind, ax=given, **KEY)
    assert len(figure.axes) > 3
    assert min(panel.get_position().x0 for panel in figure.axes) >= 0.5


@pytest.mark.parametrize(
    ("missing", "arguments", "words"),
    [
        ({}, {"kind": "bar"}, "kind must be one of 'dot', 'violin'"),
        ({}, {"labels_key": "donor"}, "labels_key 'donor'"),
        ({}, {"labels": ["type_9"]}, "among the predicted 'type_0', 'type_1'"),
        ({}, {"labels": 2}, "among the predicted 'type_0', 'type_1'"),
        ({}, {"labels": []}, "among the predicted 'type_0', 'type_1'"),
        ({2: "type_1"}, {}, "control has no cells of 'type_1'"),
        ({1: "type_2"}, {"labels": "type_2"}, "observed has no cells of any of 'type_2'"),
        ({}, {"genes": []}, "No genes are selected"),
        ({}, {"genes": "ACTB"}, "'ACTB'"),
    ],
)
def test_wrong_arguments(groups, missing, arguments, words):
    given = [
        cells[cells.obs["cell_type"] != missing.get(i)].copy() for i, cells in enumerate(groups)
    ]
    with pytest.raises(ValueError, match=words):
        trvae.pl.response_by_label(*given, **(KEY | arguments))
