# %% [markdown]
# # From lesions to a submission
#
# What this project does, step by step, on a **synthetic** dataset: data, folds, CatBoost on the metadata, a network
# that looks at the crop, their combination, the competition's metric, and `kernel.py` offline. Nothing here is a
# picture of a person, and no figure here says how well the method works on real lesions: that is in the README.
#
# It runs in a clone of the repository, without a GPU; on Kaggle (Internet on) and on Colab after `REPOSITORY` in the next
# cell has the address of the repository. That cell reads what `make demo` has made, or makes a smaller dataset and trains
# on it, which takes some minutes.

# %%
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = ""  # the address of this repository, where only the notebook was opened
CLONE = Path("slice-3d-fusion").resolve()
here = [Path.cwd(), *Path.cwd().parents, CLONE]
if not any((folder / "kernel.py").is_file() for folder in here):
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, CLONE], check=True)
root = next(folder for folder in here if (folder / "kernel.py").is_file())
os.chdir(root)
sys.path.insert(0, str(root))
needed = {"catboost": "catboost", "h5py": "h5py", "imagehash": "ImageHash", "jinja2": "jinja2", "tensorflow": "tensorflow"}
if missing := [package for module, package in needed.items() if find_spec(module) is None]:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)

demo = Path(os.environ.get("DEMO", "demo"))
small = "--weights none --image-size 32 --epochs 8 --batch-size 32 --learning-rate 1e-3"
steps = {
    "train.synthetic": "--out {demo}/data --patients 60 --lesions 2000 --prevalence 0.1",
    "train.folds": "--data {demo}/data --artifacts {demo}/artifacts --folds 2",
    "train.tabular": "--data {demo}/data --artifacts {demo}/artifacts --seeds 1",
    "train.fusion": "--data {demo}/data --artifacts {demo}/artifacts " + small,
    "train.stacking": "--data {demo}/data --artifacts {demo}/artifacts --seeds 1",
}
if not (demo / "artifacts" / "oof_stacking.csv").is_file():
    demo = Path("walkthrough-demo")
    for module, options in steps.items():
        words = options.format(demo=demo).split()
        subprocess.run([sys.executable, "-m", module, "--quiet", *words], check=True)
data, artifacts = demo / "data", demo / "artifacts"

# %% [markdown]
# ## Data
#
# A row per lesion: what a 3D total-body photograph measures (`tbp_lv_*`), the patient, and a crop of 15 mm x 15 mm.
# `target` is 1 for the few malignant lesions. The synthetic dataset has the competition's files and columns; its
# probabilities are known, so there is a best possible score.

# %%
import matplotlib.pyplot as plt
import numpy as np

from evaluation.grad_cam import read_crops
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, read_metadata
from train.lesions import open_images

metadata = read_metadata(data / "train-metadata.csv", labelled=True)
by_hospital = metadata.groupby(HOSPITAL).agg(
    patients=(PATIENT, "nunique"), lesions=(TARGET, "size"), malignant=(TARGET, "sum")
)
print(by_hospital.rename(lambda name: name[:50]).to_string())

rng = np.random.default_rng(0)
shown = np.concatenate([rng.choice(np.flatnonzero(metadata[TARGET] == target), 5, replace=False) for target in (1, 0)])
crops = read_crops(open_images(data), metadata[ID].iloc[shown].tolist(), 128)
figure, cells = plt.subplots(2, 5, figsize=(9, 4.2), layout="constrained")
figure.suptitle("Synthetic crops, 15 mm wide: malignant above, benign below")
for cell, crop in zip(cells.flat, crops, strict=True):
    cell.imshow(crop, extent=(0, 15, 0, 15))
    cell.set(xticks=[0, 15], yticks=[])
plt.show()

# %% [markdown]
# ## Folds and CatBoost
#
# No patient is on both sides of a fold; some patients are held out for the end. A lesion's *out-of-fold* tabular logit
# comes from models that never saw its patient. Features compare a lesion with the patient's other lesions: the ugly
# duckling.

# %%
import pandas as pd

from train.folds import fold_table

folds = pd.read_csv(artifacts / "folds.csv")
print(fold_table(folds))
patients = folds.groupby(PATIENT)["fold"].nunique()
print(f"\npatients in more than one fold: {(patients > 1).sum()}")

# %%
from inference.artifacts import load_manifest
from inference.tabular import load_models

manifest = load_manifest(artifacts)
models, _ = load_models(artifacts, manifest)
importance = np.mean([model.get_feature_importance() for model, _ in models], axis=0)
strongest = pd.Series(importance, manifest["tabular"]["features"]).nlargest(10)[::-1]
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.barh(strongest.index, strongest)
axes.set(xlabel="importance, % (CatBoost's PredictionValuesChange)", title=f"Ten of {len(importance)} features")
plt.show()

# %% [markdown]
# ## The network and what it looks at
#
# The network takes the crop and the tabular logit. It starts as the tabular model and learns a correction: final logit
# = tabular logit + correction(crop, logit). Grad-CAM shows where the crop raises the logit, here for the malignant
# lesions that the networks rank lowest and the benign ones that they rank highest. In synthetic crops the mottles of the
# skin carry the signal, not the lesion.

# %%
from evaluation.grad_cam import choose_lesions, heat_maps, side_by_side
from inference.artifacts import best_network

oof = pd.read_csv(artifacts / "oof_fusion.csv")
chosen = choose_lesions(oof, 4)
size = best_network(manifest)["settings"]["image_size"]
crops = read_crops(open_images(data), chosen[ID].tolist(), size)
heat, where = heat_maps(chosen, crops, artifacts, manifest)
figure, cells = plt.subplots(2, 4, figsize=(9, 3.4), layout="constrained")
figure.suptitle(f"Crop and Grad-CAM ({where}): lowest malignant above, highest benign below")
for cell, crop, warm, (_, lesion) in zip(cells.flat, crops, heat, chosen.iterrows(), strict=True):
    cell.imshow(side_by_side(crop, warm))
    cell.set_title(f"logit {lesion['tabular']:+.1f} to {lesion['network']:+.1f}", fontsize=9)
    cell.set_axis_off()
plt.show()

# %% [markdown]
# ## Combination and metric
#
# A last stage compares each lesion with the patient's others, and all scores are combined by a rule that is chosen out
# of fold; `final` is what `kernel.py` submits. The metric is the area under the ROC curve above 80 % true-positive rate,
# 0 to 0.20; guessing has 0.02. Intervals resample whole patients, for lesions of a patient resemble each other.

# %%
from utils import bootstrap_scores, format_table

scored = pd.read_csv(artifacts / "oof_stacking.csv").merge(metadata[[ID, PATIENT]], on=ID)
table = bootstrap_scores(
    scored[TARGET].to_numpy(),
    scored[PATIENT].to_numpy(),
    {name: scored[name].to_numpy() for name in ("tabular", "network", "stacking", "final")},
)
print(format_table(table))
difference = table.difference("final", "tabular")
print(f"\nfinal - tabular: {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] pAUC, paired")

# %%
from sklearn.metrics import roc_curve

figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
for name, dashes in {"tabular": (4, 2), "network": (1, 1), "final": ()}.items():
    false_positive, true_positive, _ = roc_curve(scored[TARGET], scored[name])
    axes.plot(false_positive, true_positive, dashes=dashes, label=f"{name}, pAUC {table.scores[name].pauc.value:.3f}")
axes.axhspan(0.8, 1, color="0.9", zorder=0)
axes.set(xlabel="false-positive rate", ylabel="true-positive rate", title="Only the grey part counts")
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Dry run
#
# `kernel.py`, the one file that Kaggle runs, scores the held-out patients in an empty folder without a network
# connection, as on the day of the submission; where the data are synthetic, the best possible score stands beside its
# own.

# %%
report = Path("walkthrough-report")
command = ["evaluation.dry_run", "--data", data, "--artifacts", artifacts, "--report", report]
run = subprocess.run([sys.executable, "-m", *map(str, command)], check=True, capture_output=True, text=True)
print(run.stdout[run.stdout.index("| score") :])
print(pd.read_csv(report / "submission.csv").head(3).to_string(index=False))
