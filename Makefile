# Everything runs in a virtual environment that `make` makes itself; all it needs is Python 3.11, 3.12 or 3.13.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
DEMO   ?= demo

.PHONY: demo test lint fuzz skew kernel data publish push submit score train-on-kaggle bench scale archives-study imbalance-study explore clean

# A virtual environment with the pinned packages; made again when the pins change.
$(VENV)/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  "TensorFlow 2.20 needs Python 3.11, 3.12 or 3.13, this is %d.%d; run: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# The whole walk on made data: twin, folds, CatBoost, networks, kernel, dry run. About 20 minutes on 2 cores.
demo: $(VENV)/installed
	$(RUN) -m train.synthetic --out $(DEMO)/data --patients 300 --lesions 20000 --prevalence 0.1
	$(RUN) -m train.folds --data $(DEMO)/data --artifacts $(DEMO)/artifacts --folds 2
	$(RUN) -m train.tabular --data $(DEMO)/data --artifacts $(DEMO)/artifacts --seeds 2
	$(RUN) -m train.fusion --data $(DEMO)/data --artifacts $(DEMO)/artifacts $(DEMO_NETWORK)
	$(RUN) -m train.fusion --data $(DEMO)/data --artifacts $(DEMO)/artifacts $(DEMO_NETWORK) --inputs image
	$(RUN) -m inference.build_kernel
	$(RUN) -m evaluation.dry_run --data $(DEMO)/data --artifacts $(DEMO)/artifacts --report $(DEMO)/report

# Small crops, random initial weights (nothing is downloaded), a few epochs; chosen on twins of another seed.
DEMO_NETWORK := --weights none --image-size 32 --epochs 12 --batch-size 32 --learning-rate 1e-3

test: $(VENV)/installed lint
	$(RUN) -m inference.build_kernel --check
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

kernel: $(VENV)/installed
	$(RUN) -m inference.build_kernel

# Thousands of broken images and garbled tables; the suite tries some.
fuzz: $(VENV)/installed
	FUZZ_IMAGES=5000 FUZZ_TABLES=1000 $(RUN) -m pytest tests/inference/test_fuzz.py

# The built kernel under the Kaggle image's package versions, the newest and the oldest: the same scores, or it fails.
SKEW := skew
skew: $(VENV)/installed
	rm -rf $(SKEW)/data $(SKEW)/artifacts
	$(RUN) -m train.synthetic --out $(SKEW)/data --patients 16 --lesions 300 --prevalence 0.2
	$(RUN) -m train.folds --data $(SKEW)/data --artifacts $(SKEW)/artifacts --folds 2
	$(RUN) -m train.tabular --data $(SKEW)/data --artifacts $(SKEW)/artifacts --seeds 1
	$(RUN) -m train.fusion --data $(SKEW)/data --artifacts $(SKEW)/artifacts --weights none --image-size 32 --epochs 8 \
	  --batch-size 16 --learning-rate 1e-3 --negatives-per-positive 4
	$(RUN) -m benchmarks.version_skew --data $(SKEW)/data --artifacts $(SKEW)/artifacts --out $(SKEW)

# The round trip with Kaggle, by the official CLI in the name of whoever is logged in there. DRY=1 says what a step
# would do; OPTIONS are those of its command, as --help tells them.
DATA      ?= data/isic-2024-challenge
ARTIFACTS ?= artifacts
OUTPUT    ?= kaggle-output
SOURCE    ?= dataset
PART      ?= 1
OPTIONS   ?=
MESSAGE   ?=
DRY_RUN   := $(if $(DRY),--dry-run)

# The competition's five files; goes on where it was interrupted.
data: $(VENV)/installed
	$(RUN) -m kaggle_cli.data --data $(DATA) $(OPTIONS) $(DRY_RUN)

# The artifact folder as a private dataset: created the first time, a new version after that.
publish: $(VENV)/installed
	$(RUN) -m kaggle_cli.publish --artifacts $(ARTIFACTS) $(OPTIONS) $(DRY_RUN)

# kernel.py with the published artifacts, or with SOURCE=training those of train-on-kaggle; waits, fetches, checks.
push: $(VENV)/installed
	$(RUN) -m kaggle_cli.push --data $(DATA) --output $(OUTPUT) --source $(SOURCE) --part $(PART) $(OPTIONS) $(DRY_RUN)

submit: $(VENV)/installed
	$(RUN) -m kaggle_cli.submit --output $(OUTPUT) $(if $(MESSAGE),--message "$(MESSAGE)") $(OPTIONS) $(DRY_RUN)

score: $(VENV)/installed
	$(RUN) -m kaggle_cli.submit --score $(DRY_RUN)

# Training on Kaggle's GPUs, in parts of at most 11 hours: PART=2 goes on with what PART=1 left.
train-on-kaggle: $(VENV)/installed
	$(RUN) -m kaggle_cli.train_remote --part $(PART) $(OPTIONS) $(DRY_RUN)

# Measured figures, one JSON line each: the tabular side on half a million made lesions, the kernel's images, the fitting.
bench: $(VENV)/installed
	$(RUN) -m benchmarks.inference --growth
	$(RUN) -m benchmarks.tabular --growth
	$(RUN) -m benchmarks.training

# Trainings and scoring on a real cluster of this machine: a worker killed in its work, then 500,000 and 5,000,000 lesions.
scale: $(VENV)/installed
	$(RUN) -m pytest tests/scale/test_parallel.py tests/scale/test_cluster_training.py
	$(RUN) -m benchmarks.scale

# What the earlier archives are worth to the network, on the images in DATA: hours on a CPU where DATA is the whole set.
ARCHIVES      ?= data/isic-archives
STUDY         ?= archives-study
STUDY_NETWORK ?= --weights imagenet
archives-study: $(VENV)/installed
	$(RUN) -m train.archives --root $(ARCHIVES) --out $(STUDY)/archives --competition $(DATA)
	$(RUN) -m train.folds --data $(DATA) --artifacts $(STUDY)/artifacts --folds 3 --holdout 0
	$(RUN) -m train.tabular --data $(DATA) --artifacts $(STUDY)/artifacts
	$(RUN) -m evaluation.studies.archives --data $(DATA) --artifacts $(STUDY)/artifacts --archives $(STUDY)/archives \
	  --out $(STUDY)/trained $(STUDY_NETWORK)

# What is best done about rare malignant lesions, with the folds and tabular scores in ARTIFACTS.
imbalance-study: $(VENV)/installed
	$(RUN) -m evaluation.studies.imbalance --data $(DATA) --artifacts $(ARTIFACTS) --out $(STUDY) $(STUDY_NETWORK)

# One page to look at the folder DATA by: counts, gaps, shifts, rates, the strongest columns, crops, what will hurt.
OUT ?= exploration
explore: $(VENV)/installed
	$(RUN) -m evaluation.explore --data $(DATA) --out $(OUT)

clean:
	rm -rf $(DEMO) $(VENV)
