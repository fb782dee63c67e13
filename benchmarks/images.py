"""How well images are drawn under conditions in which their kind was never seen.

Thin and thick images of four digits are held out of training and drawn from the normal ones, by
``ImageTRVAE``, by the same network without MMD, and by baselines. Results are kept in
``benchmarks/results/images``; what is there already is not computed again. Run from the root of the
repository; needs scikit-image::

    python benchmarks/images.py
    python benchmarks/images.py --tuning  # other digits and seeds, by which settings were chosen
    python benchmarks/images.py --report > benchmarks/images.md
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from accuracy import QUIET, RESULTS, how, quiet, record_environment, use_threads
from sklearn.neural_network import MLPClassifier

import trvae
from trvae._interruption import end_if_interrupted
from trvae._strokes import thicker, thinner

SOURCE, TARGETS = "normal", ["thin", "thick"]
DIGITS, SEEDS = ["1", "3", "6", "7"], [0, 1, 2]
TUNING_DIGITS, TUNING_SEEDS = ["0", "4", "5", "9"], [10, 11]
CONSTANT = {"max_epochs": 22, "plan_kwargs": {"lr": 2e-3, "lr_schedule": "constant"}}
# Arguments of the model, and of its training.
METHODS: dict[str, dict] = {
    "trVAE": {},
    "without MMD": {"mmd_weight": 0.0},
    "MMD of the first decoder layer (paper)": {"mmd_layer": "decoder", "mmd_weight": 10.0},
}
TUNED: dict[str, dict] = {
    "trVAE": {},
    "constant learning rate": {"train": CONSTANT},
    "constant learning rate, MMD weight 300": {"mmd_weight": 300.0, "train": CONSTANT},
}
REPORTED, TUNING = RESULTS / "images", RESULTS / "images_tuning"
MEASURES = ["thickness", "recognised", "energy_distance", "frechet_distance"]


class Judge:
    """Tells digits, and how far images are from each other in what it looks at.

    Parameters
    ----------
    adata
        Real images of all conditions.
    """

    def __init__(self, adata: ad.AnnData):
        classifier = MLPClassifier((256, 64), early_stopping=True, random_state=0)
        self.classifier = classifier.fit(adata.X / 255.0, adata.obs["digit"])

    def features(self, images: np.ndarray) -> np.ndarray:
        """Activations of the last hidden layer, ``n_images x 64``."""
        hidden = images.reshape(len(images), -1) / 255.0
        for weight, bias in zip(
            self.classifier.coefs_[:-1], self.classifier.intercepts_[:-1], strict=True
        ):
            hidden = np.maximum(hidden @ weight + bias, 0)
        return hidden

    def measure(self, images: np.ndarray, real: np.ndarray, digit: str) -> dict[str, float]:
        """Compare images of one digit with real ones, both ``n_images x 28 x 28``."""
        drawn, held_out = self.features(images), self.features(real)
        recognised = self.classifier.predict(images.reshape(len(images), -1) / 255.0) == digit
        return {
            "thickness": float(np.nanmean(trvae.metrics.stroke_thickness(images))),
            "real thickness": float(np.nanmean(trvae.metrics.stroke_thickness(real))),
            "recognised": float(recognised.mean()),
            "energy_distance": trvae.metrics.energy_distance(drawn, held_out),
            "frechet_distance": trvae.metrics.frechet_distance(drawn, held_out),
        }


def images_of(adata: ad.AnnData, digit: str, condition: str) -> ad.AnnData:
    """Images of one digit under one condition."""
    chosen = (adata.obs["digit"] == digit) & (adata.obs["condition"] == condition)
    return adata[chosen].copy()


def baselines(adata: ad.AnnData, train: ad.AnnData, digit: str, target: str) -> dict:
    """What can be drawn without a network, and what real images would give."""
    source = images_of(adata, digit, SOURCE).X.reshape(-1, 28, 28)
    both = [
        other for other in train.obs["digit"].unique() if images_of(train, other, target).n_obs > 0
    ]
    shift = np.mean(
        [
            images_of(train, other, target).X.mean(0) - images_of(train, other, SOURCE).X.mean(0)
            for other in both
        ],
        axis=0,
    )
    moved = (source + shift.reshape(28, 28)).clip(0, 255).round().astype(np.uint8)
    change = thinner if target == "thin" else thicker
    return {
        "no change": source,
        "mean shift": moved,
        "erosion or dilation (ceiling)": np.stack([change(image) for image in source]),
    }


def run(adata: ad.AnnData, judge: Judge, digits: list[str], method: str, seed: int) -> list[dict]:
    """Train once, and measure every held-out digit and condition."""
    held_out = adata.obs["digit"].isin(digits) & adata.obs["condition"].isin(TARGETS)
    train = adata[~held_out].copy()
    model, seconds = None, 0.0
    if method != "no change":
        trvae.ImageTRVAE.setup_anndata(
            train,
            condition_key="condition",
            labels_key="digit",
            image_shape=adata.uns["image_shape"],
        )
        settings = dict((METHODS | TUNED)[method])
        training = settings.pop("train", {})
        model = trvae.ImageTRVAE(train, seed=seed, **settings)
        start = time.perf_counter()
        model.train(**training, **QUIET)
        seconds = time.perf_counter() - start
        end_if_interrupted(model)
    rows = []
    for digit in digits:
        source = images_of(adata, digit, SOURCE)
        for target in TARGETS:
            if model is None:
                drawn = baselines(adata, train, digit, target)
            else:
                drawn = {
                    name: model.get_transferred_images(source, target, estimate=estimate)[..., 0]
                    for name, estimate in {
                        method: "counterfactual",
                        f"{method}, decoded": "decoded",
                    }.items()
                }
            real = images_of(adata, digit, target).X.reshape(-1, 28, 28)
            rows += [
                {"digit": digit, "target": target, "method": name, "seed": seed}
                | {"seconds": round(seconds, 1)}
                | judge.measure(images, real, digit)
                for name, images in drawn.items()
            ]
    return rows


def read(folder: Path) -> pd.DataFrame:
    """Results, one row for each digit, target and seed; thickness as a share of the real one."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    table = pd.DataFrame(map(json.loads, lines)).drop_duplicates(
        ["digit", "target", "method", "seed"]
    )
    table["thickness / real"] = table["thickness"] / table["real thickness"]
    order = {target: i for i, target in enumerate(TARGETS)}
    return table.sort_values("target", key=lambda column: column.map(order), kind="stable")


def print_means(table: pd.DataFrame, by: list[str]) -> None:
    """Print the mean measures of groups as Markdown."""
    shown = ["thickness / real", *MEASURES[1:]]
    means = table.groupby(by, sort=False)[shown].mean().round(3).reset_index()
    print(means.to_markdown(index=False), "\n")


def report() -> None:
    """Print what is there as Markdown."""
    table, tuning = read(REPORTED), read(TUNING)
    print("# Digits drawn with strokes of which the digit was never seen\n")
    print(
        f"Thin and thick images of {', '.join(DIGITS)} are held out, and drawn from the normal ones. "
        "Stroke thickness is compared with that of the real held-out images. A classifier that was "
        "trained on real images of all conditions tells whether the digit is recognised, and in its "
        "last hidden layer the distances to the real images are taken. Networks draw "
        "counterfactuals, or what is decoded. The ceiling is what made the real images, "
        "applied to the normal ones.\n"
    )
    print("## Mean over digits and seeds\n")
    print_means(table, ["target", "method"])
    print("## Each digit\n")
    print_means(table, ["digit", "target", "method"])
    print("## Each seed\n")
    print_means(table[table["seconds"] > 0], ["seed", "target", "method"])
    trained = table[(table["seconds"] > 0) & ~table["method"].str.endswith(", decoded")]
    seconds = trained.groupby("method", sort=False)["seconds"].mean()
    print("Seconds of training: " + ", ".join(f"{m} {s:.0f}" for m, s in seconds.items()) + ".\n")
    print("## Digits and seeds by which settings were chosen\n")
    print(f"Held out: {', '.join(TUNING_DIGITS)}.\n")
    print_means(tuning, ["target", "method"])
    print(f"## How\n\n{how(REPORTED)}\n{how(TUNING)}")


def main() -> None:
    """Run what is not there yet, or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuning", action="store_true", help="digits and seeds to choose by")
    known_methods = [*(METHODS | TUNED)]
    parser.add_argument("--methods", nargs="*", choices=known_methods, help="by default all")
    parser.add_argument("--report", action="store_true", help="print the tables")
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    folder = TUNING if arguments.tuning else REPORTED
    if arguments.report:
        report()
        return
    use_threads(arguments.threads)
    quiet()
    digits, seeds = (TUNING_DIGITS, TUNING_SEEDS) if arguments.tuning else (DIGITS, SEEDS)
    methods = arguments.methods or [*(TUNED if arguments.tuning else METHODS)]
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    known = map(json.loads, results.read_text().splitlines()) if results.exists() else []
    done = {(row["method"], row["seed"]) for row in known}
    adata = trvae.datasets.stroke_digits()
    judge = Judge(adata)
    record_environment(folder, methods, seeds)
    runs = [("no change", seeds[0])] + [(m, s) for s in seeds for m in methods]
    for method, seed in runs:
        if (method, seed) in done:
            continue
        rows = run(adata, judge, digits, method, seed)
        with results.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        means = pd.DataFrame(rows).groupby(["target", "method"])[MEASURES].mean().round(3)
        print(seed, means.to_string(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
