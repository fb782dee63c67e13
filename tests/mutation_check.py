"""Deliberate bugs, each of which the suite has to find.

Each is put into a copy of the package, and the tests that should find it are run on that. Prints
``survived: 0`` if all are found, and otherwise ends with status 1. Run from the root of the
repository; takes half an hour::

    python tests/mutation_check.py
    python tests/mutation_check.py "MMD pushes"  # those whose name contains this
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A bug: in a file of the package, ``right`` becomes ``wrong``."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str
    """What should find it, files below ``tests``."""


MUTATIONS = [
    Mutation(
        "the MMD pushes conditions apart",
        "module/_loss.py",
        ".mean() + self.mmd_weight * mmd",
        ".mean() - self.mmd_weight * mmd",
        "model/test_trvae.py train",
    ),
    Mutation(
        "the MMD compares cells of all labels",
        "module/_mmd.py",
        "else label[:, None] == label",
        "else torch.ones_like(label[:, None] == label)",
        "module/test_mmd.py",
    ),
    Mutation(
        "half of the MMD's derivative is lost",
        "module/_mmd.py",
        "pull = pull + pull.T",
        "pull = pull",
        "module/test_mmd.py",
    ),
    Mutation(
        "the KL divergence is not weighted",
        "module/_loss.py",
        "(reconstruction + weight * kl)",
        "(reconstruction + kl)",
        "train model/test_trvae.py",
    ),
    Mutation(
        "cells are decoded under their own condition",
        "model/_decoding.py",
        '**inputs | {"batch_index": other}, base=source.base',
        "**inputs, base=source.base",
        "model/test_transfer.py",
    ),
    Mutation(
        "source and target condition are swapped",
        "model/_decoding.py",
        "yield tensors, inferred",
        "yield tensors | {REGISTRY_KEYS.BATCH_KEY: 1 - tensors[REGISTRY_KEYS.BATCH_KEY]}, inferred",
        "model/test_transfer.py",
    ),
    Mutation(
        "the dispersion is that of the source condition",
        "model/_decoding.py",
        "module.spread(other[0].long())",
        "module.spread(own[0].long())",
        "model/test_transfer.py counterfactual/test_residual.py",
    ),
    Mutation(
        "categorical covariates are dropped",
        "module/_covariates.py",
        "out = out + table(covariates.categorical[:, i])",
        "out = out + 0 * table(covariates.categorical[:, i])",
        "module/test_layers.py model/test_trvae.py",
    ),
    Mutation(
        "categorical covariates are exchanged",
        "module/_covariates.py",
        "table(covariates.categorical[:, i])",
        "table(covariates.categorical[:, -1 - i])",
        "module/test_layers.py model/test_trvae.py model/test_mapping.py",
    ),
    Mutation(
        "genes are taken in the order given",
        "data/_registered.py",
        "order = genes.get_indexer(self.cells_of(data).var_names)",
        "order = np.arange(len(genes))",
        "model/test_transfer.py",
    ),
    Mutation(
        "the last cell of each chunk is left out",
        "model/_streaming.py",
        "slice(start, start + chunk_size)",
        "slice(start, start + chunk_size - 1)",
        "io/test_chunks.py",
    ),
    Mutation(
        "a chunk is computed again after an interruption",
        "model/_streaming.py",
        "if number not in saved)",
        "if True)",
        "io/test_chunks.py",
    ),
    Mutation(
        "two transfers write one result",
        "io/_chunks.py",
        "        lock.acquire()\n",
        "        pass\n",
        "io/test_chunks.py",
    ),
    Mutation(
        "growth is that of the labels and of the decoder",
        "counterfactual/_label_response.py",
        "target = target / of_decoder.clamp(min=1e-12)",
        "pass",
        "counterfactual/test_label_response.py",
    ),
    Mutation(
        "growth of size factors counts as a change that was not measured",
        "model/_labels.py",
        "if not _decoder_grows(model):",
        "if True:",
        "counterfactual/test_label_response.py",
    ),
    Mutation(
        "chunks of another transfer are taken",
        "io/_chunks.py",
        "if saved != task:",
        "if False:",
        "io/test_chunks.py",
    ),
    Mutation(
        "genes that fall keep what they should lose",
        "counterfactual/_residual.py",
        "binomial_quantile(tail, entries[falls], after / before)",
        "binomial_quantile(tail, entries[falls], 1 - after / before)",
        "counterfactual/test_residual.py",
    ),
    Mutation(
        "frequent counts are drawn against the others",
        "counterfactual/_quantiles.py",
        "torch.where(is_rare, tail, 1 - tail)",
        "tail",
        "counterfactual/test_quantiles.py",
    ),
    Mutation(
        "what is tried of a count is not carried over to the next steps",
        "counterfactual/_quantiles.py",
        "state[1], state[2] = pmfs[-1], exceeded[-1]",
        "state[1] = pmfs[-1]",
        "counterfactual/test_quantiles.py",
    ),
    Mutation(
        "the decoder's change has no limit",
        "counterfactual/_label_response.py",
        "self._is_limited = bool(np.isfinite(limit))",
        "self._is_limited = False",
        "counterfactual/test_label_response.py",
    ),
    Mutation(
        "draws do not depend on the seed",
        "counterfactual/_draws.py",
        "for word in (seed, purpose, draw, *keys.T):",
        "for word in (0, purpose, draw, *keys.T):",
        "model/test_transfer.py",
    ),
    Mutation(
        "the network gets its weight twice",
        "counterfactual/_label_response.py",
        "of_labels.add_(of_network, alpha=self._weight_of_network)",
        "of_labels.add_(of_network, alpha=2 * self._weight_of_network)",
        "counterfactual",
    ),
    Mutation(
        "calibration trains with the cells that it leaves out",
        "model/_calibration.py",
        "self.cells[~is_left_out.to_numpy()].copy()",
        "self.cells.copy()",
        "model/test_calibration.py",
    ),
    Mutation(
        "a label's own answer enters the weights it is judged by",
        "counterfactual/_left_out.py",
        "others = products.without(label)",
        "others = products",
        "counterfactual",
    ),
    Mutation(
        "how far weights move is judged by the labels they were fitted to",
        "counterfactual/_left_out.py",
        "_fitted(products.without(label), prior, shrinkage)",
        "_fitted(products, prior, shrinkage)",
        "counterfactual",
    ),
    Mutation(
        "intervals are for genes that change as expected",
        "counterfactual/_left_out.py",
        "if is_top.sum() < _FEWEST_FOR_QUANTILE:",
        "if True:",
        "counterfactual",
    ),
    Mutation(
        "intervals of few labels are as narrow as those of many",
        "counterfactual/_left_out.py",
        "max(quantile, few_labels * ",
        "max(quantile, ",
        "counterfactual",
    ),
    Mutation(
        "intervals of silent genes start above 0",
        "model/_confidence.py",
        "end * scale for",
        "transferred + scale * (end - share) for",
        "counterfactual",
    ),
    Mutation(
        "a calibration outlives the weights that it was of",
        "model/_trvae.py",
        "            self.calibration_ = {}\n",
        "            pass\n",
        "model/test_calibration.py",
    ),
    Mutation(
        "labels of few cells count like others",
        "counterfactual/_label_response.py",
        "enough = n_cells >= MIN_CELLS",
        "enough = n_cells > 0",
        "counterfactual metrics",
    ),
    Mutation(
        "linear counts are the control's",
        "metrics/_baselines.py",
        "for shares in (before, after)]",
        "for shares in (before, before)]",
        "metrics",
    ),
    Mutation(
        "the reference changes with its query",
        "module/_base.py",
        "    grad[:n_rows] = 0\n",
        "",
        "model/test_trvae.py model/test_mapping.py",
    ),
    Mutation(
        "rare conditions are not repeated",
        "train/_sampling.py",
        "None if balanced else 0, sharing",
        "0, sharing",
        "train data",
    ),
    Mutation(
        "held-out cells are trained on",
        "evaluation/_split.py",
        "groups = (~held_out, sources, held_out)",
        "groups = (held_out | True, sources, held_out)",
        "evaluation",
    ),
    Mutation(
        "the library size is left out",
        "module/_expression.py",
        "log_rate = log_size + log_scale",
        "log_rate = 0 * log_size + log_scale",
        "model/test_trvae.py train",
    ),
    Mutation(
        "the spread within groups is left out of the energy distance",
        "metrics/_distances.py",
        "return float(2 * between - within)",
        "return float(2 * between)",
        "metrics",
    ),
    Mutation(
        "support counts the reference cells that are closer",
        "counterfactual/_support.py",
        'n_farther = len(usual) - np.searchsorted(usual, distance, side="left")',
        'n_farther = np.searchsorted(usual, distance, side="left")',
        "model/test_confidence.py",
    ),
    Mutation(
        "the condition does not reach the drawing of images",
        "module/_image_layers.py",
        "shifted = self.offset.added_to(positions_first, covariates)",
        "shifted = (positions_first + 0 * self.offset.added_to(positions_first, covariates))",
        "model/test_image_trvae.py",
    ),
    Mutation(
        "processes that train together compare only their own cells",
        "module/_loss.py",
        "if self.training:",
        "if False:",
        "module/test_distributed.py",
    ),
    Mutation(
        "categories have the codes of the order that a column declares",
        "data/_codes.py",
        "return pd.Categorical(column, categories=pd.Index(list(categories))).codes",
        'return column.astype("category").cat.codes.to_numpy()',
        "data/test_codes.py",
    ),
    Mutation(
        "numbers are taken for strings",
        "data/_codes.py",
        "!= (known := _kind(categories)):",
        "!= (known := _kind(categories)) and False:",
        "data/test_codes.py",
    ),
    Mutation(
        "an optimizer moves the reference",
        "train/_plan.py",
        "self.module.restore_known_rows()",
        "pass",
        "model/test_mapping.py",
    ),
    Mutation(
        "cells beside a model are of any model",
        "io/_saved.py",
        "return attributes[_DIGEST] == known.digest(cells)",
        "return True",
        "io/test_saved.py model/test_saving.py",
    ),
    Mutation(
        "cells of a replaced model are those of the new one",
        "model/_saving.py",
        "return saved if own == saved else None",
        "return saved",
        "model/test_saving.py",
    ),
    Mutation(
        "models of different ensembles are loaded together",
        "model/_ensemble.py",
        "if any(saved) and saved",
        "if False and saved",
        "model/test_ensemble.py",
    ),
    Mutation(
        "a resumed transfer mixes old and new cells",
        "model/_streaming.py",
        "if known.digest(read(slices[number][1])) != cells:",
        "if False:",
        "io/test_chunks.py",
    ),
    Mutation(
        "the MMD grows with the number of conditions",
        "module/_mmd.py",
        'if reduction == "mean":',
        "if False:",
        "module/test_mmd.py",
    ),
    Mutation(
        "early stopping keeps the last weights",
        "model/_training.py",
        "if stopped_by is None and not early_stopping:",
        "if stopped_by is None:",
        "train/test_plan.py",
    ),
    Mutation(
        "counterfactuals are scaled by size factors",
        "model/_transfer.py",
        "sums = expected.sum(1, keepdim=True)",
        "sums = minibatch.size",
        "model/test_transfer.py",
    ),
    Mutation(
        "cells on a GPU have genes of the next cell",
        "data/_on_device.py",
        "self._value[entry] * is_entry",
        "self._value[entry]",
        "data/test_on_device.py",
    ),
    Mutation(
        "the terms of an epoch add up over all epochs",
        "train/_plan.py",
        "            value.zero_()\n",
        "            pass\n",
        "train/test_plan.py train/test_graphs.py",
    ),
    Mutation(
        "the KL weight stays that of the first epoch",
        "train/_plan.py",
        "if at != self._kl_weight_at:",
        "if self._kl_weight_at is None:",
        "train/test_plan.py",
    ),
    Mutation(
        "captured steps leave out the optimizer",
        "train/_plan.py",
        "        optimizer.step()\n",
        "",
        "train/test_graphs.py",
    ),
    Mutation(
        "counts don't start from their mean",
        "module/_expression.py",
        "decoder.bias.copy_(logits)",
        "decoder.bias.copy_(0 * logits)",
        "train/test_initial_means.py",
    ),
    Mutation(
        "genes without variance change most clearly",
        "metrics/_differential_expression.py",
        "(_PRIOR_CELLS * prior + n_others * variance) / (_PRIOR_CELLS + n_others)",
        "variance",
        "metrics",
    ),
    Mutation(
        "the large group's cells count for the small one's error",
        "metrics/_differential_expression.py",
        "squared_error**2 / of_groups",
        "0 * of_groups + len(control) + len(treated) - 2",
        "metrics/test_measures.py",
    ),
    Mutation(
        "a replicate has half of the cells",
        "metrics/_all_measures.py",
        "sizes = len(self._control), len(self._observed)",
        "sizes = len(self._observed) // 2, len(self._observed) // 2",
        "metrics",
    ),
    Mutation(
        "distances are in components of the compared cells' noise",
        "metrics/_all_measures.py",
        "cells = own if self._others is None else self._others.cells",
        "cells = own",
        "metrics",
    ),
    Mutation(
        "genes are those at which the mean shift errs",
        "metrics/_all_measures.py",
        "others.change.std(0)",
        "observed.mean(0) - control.mean(0) - others.change.mean(0)",
        "metrics",
    ),
    Mutation(
        "own cells whose columns have changed are predicted",
        "model/_selection.py",
        "        model._check_columns_unchanged(positions)\n",
        "",
        "test_bad_input.py",
    ),
    Mutation(
        "what another model has registered of the cells is read",
        "model/_base.py",
        "        self.adata_manager.validate()\n",
        "",
        "data/test_registration.py",
    ),
    Mutation(
        "a copy takes the place of what is registered",
        "data/_cells.py",
        "        del copy.uns[key]\n",
        "        pass\n",
        "data/test_registration.py evaluation/test_evaluate.py",
    ),
    Mutation(
        "cells without counts lower the profile of their group",
        "counterfactual/_label_response.py",
        "n_counted.clip(min=1)",
        "n_cells",
        "counterfactual/test_label_response.py",
    ),
    Mutation(
        "labels that are a covariate, too, become the first label",
        "model/_base.py",
        "labels_key is not None and labels_key not in known.categories()",
        "labels_key is not None",
        "data/test_registration.py",
    ),
    Mutation(
        "a query resumes on another reference",
        "model/_identity.py",
        "        **mapped,\n",
        "",
        "model/test_mapping.py",
    ),
    Mutation(
        "results of other values are taken",
        "evaluation/_results.py",
        'digest_of_matrix(get_matrix(adata, settings["layer"]))',
        'float(get_matrix(adata, settings["layer"]).sum())',
        "evaluation",
    ),
]


def is_found(mutation: Mutation) -> bool:
    """Whether the tests fail with the bug."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "trvae"
        shutil.copytree(ROOT / "src" / "trvae", package)
        path = package / mutation.file
        source = path.read_text()
        if source.count(mutation.right) != 1:
            raise ValueError(f"{mutation.file} does not have once: {mutation.right}")
        path.write_text(source.replace(mutation.right, mutation.wrong))
        tests = [str(ROOT / "tests" / name) for name in mutation.tests.split()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
    failed = [line.split(" - ")[0] for line in done.stdout.splitlines() if line[:6] == "FAILED"]
    # An error of pytest's own finds nothing.
    if done.returncode != 0 and not failed:
        raise RuntimeError(f"{mutation.name}: pytest ended with {done.returncode}\n{done.stdout}")
    print(f"{'found' if failed else 'SURVIVED'}: {mutation.name}", *failed[:1], flush=True)
    return len(failed) > 0


def main() -> None:
    """Try all bugs, or those that are named."""
    chosen = [m for m in MUTATIONS if any(part in m.name for part in sys.argv[1:] or [""])]
    survived = [mutation.name for mutation in chosen if not is_found(mutation)]
    print(f"tried: {len(chosen)}, survived: {len(survived)}")
    sys.exit(len(survived) > 0)


if __name__ == "__main__":
    main()
