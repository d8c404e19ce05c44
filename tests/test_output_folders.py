"""Every command that writes a folder: its old files or its new ones, all of them, whatever stopped it; and nobody else's.

What the commands compute is replaced by nothing; their own code decides what is written where and when.
"""

import errno
import json
import os
from argparse import ArgumentTypeError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from evaluation import dry_run, grad_cam
from evaluation.explore import __main__ as explore
from evaluation.studies import archives, explain, hospitals, imbalance
from evaluation.triage import __main__ as triage
from inference.files import replacing
from inference.options import existing_folder
from kaggle_cli import push
from scale import artifact_folder
from terminal import run_command
from train.synthetic import __main__ as synthetic
from utils import InputError

LABELS = pd.DataFrame({"isic_id": ["a"], "target": [1], "patient_id": ["p"], "attribution": ["x"], "place": [1]})
#: Answers to whatever a command computes: without content, but of the right form.
NOTHING = SimpleNamespace(
    single=pd.DataFrame({"usable": [False]}),
    findings=[],
    **dict.fromkeys(("metadata", "features", "all", "listed"), LABELS),
    **dict.fromkeys(("labels", "patients", "shap"), np.ones(1)),
    maps={},
    layer="",
    facts={},
    seconds={"none": 1.0},
    isolation="",
    manifest={},
    rows=1,
    malignant=1,
    table=None,
)


def put(path, text):
    """Writes a file as all commands do."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class Stubs:
    """Replaces functions of a module; ``variant`` is in all that they write."""

    def __init__(self, patch, module, variant):
        self.patch, self.module, self.variant = patch, module, variant

    def gives(self, value, *names):
        for name in names:
            self.patch.setattr(self.module, name, lambda *_, **__: value)

    def writes(self, *names, title=""):
        """Functions that write a file whose path is their first argument."""
        head = f"<title>{title}</title>" if title else ""
        for name in names:
            self.patch.setattr(self.module, name, lambda path, *_, **__: put(path, f"{head}{self.variant} {path.name}"))


def run_explore(stubs, out, data):
    stubs.gives(NOTHING, "explore")
    stubs.gives({"lesions": 1, "patients": 1, "malignant": 1}, "page_content")
    stubs.writes("write_page", title="Exploration: x")
    return explore.main(["--data", data, "--out", out])


def run_triage(stubs, out, data):
    stubs.gives(NOTHING, "load_trained", "open_images", "explained_lesions")
    stubs.gives(LABELS, "read_metadata", "out_of_fold_scores")
    stubs.gives({"p": ""}, "choose_patients")
    stubs.gives({}, "page_facts", "make_cards")
    patient = SimpleNamespace(patient_id="p", labels=np.zeros(1), page=f"IP_{stubs.variant}.html")
    stubs.gives(patient, "patient_of")  # another run has other patients
    stubs.writes("write_patient", title="Triage of patient IP_1")
    stubs.writes("write_index", title="Triage: patients")
    return triage.main(["--data", data, "--artifacts", data, "--out", out])


def run_dry_run(stubs, out, data):
    def kernel(kernel, competition, artifacts, report, **_):
        for name in ("submission.csv", "scores.csv", "run.json"):
            put(report / name, stubs.variant)
        return NOTHING

    stubs.patch.setattr(dry_run, "run_kernel", kernel)
    stubs.gives(LABELS, "rows_to_score")
    stubs.gives(pd.DataFrame({"tabular": [1.0], "network": [1.0], "final": [1.0]}, index=["a"]), "read_parts")
    stubs.gives(SimpleNamespace(rows=1, malignant=1, patients=1), "bootstrap_scores")
    names = ("mount_test_folder", "checked_submission", "gather_scores", "log_scores", "build_kernel")
    stubs.gives({}, "result_of")
    stubs.gives(None, *names, "lesion_section", "kernel_section", "making_section")
    stubs.writes("write_report", title=dry_run.TITLE)
    kernel_file = Path(data) / "sample_submission.csv"
    return dry_run.main(["--data", data, "--artifacts", data, "--report", out, "--kernel", str(kernel_file)])


def run_grad_cam(stubs, out, data):
    stubs.gives(None, "refuse_without_networks", "checked_file", "open_images")
    stubs.gives({"network": {"networks": {"fusion": {"settings": {"image_size": 32}}}}}, "load_manifest")
    stubs.gives(LABELS.assign(image_scored=1), "read_scores")
    stubs.gives(LABELS, "read_metadata")
    stubs.gives("", "caption")
    stubs.writes("draw_sheet", "write_csv")
    stubs.gives(LABELS.iloc[[0, 0]].assign(sheet=list(grad_cam.SHEETS), fold=0), "choose_lesions")
    stubs.gives((np.ones((2, 2, 2)), ""), "heat_maps")
    stubs.gives(np.ones((2, 2, 2, 3)), "read_crops")
    return grad_cam.main(["--data", data, "--artifacts", data, "--out", out])


def run_explain(stubs, out, data):
    stubs.gives({"tabular": {"features": ["target"], "categories": []}}, "load_manifest")
    stubs.gives([], "load_fold_models")
    stubs.gives(SimpleNamespace(metadata=LABELS, features=LABELS, labels=np.ones(1)), "read_rows")
    stubs.gives(np.zeros(1), "read_folds")
    stubs.gives((np.zeros(1, int), np.ones(1)), "sample_rows")
    stubs.gives(NOTHING, "explain")
    stubs.gives(pd.DataFrame({"feature": ["a"], "mean_abs_shap": [1.0]}), "tabulate")
    stubs.writes("write_csv", "draw_bars", "draw_strips")
    return explain.main(["--data", data, "--artifacts", data, "--out", out])


def run_hospitals(stubs, out, data):
    stubs.gives(SimpleNamespace(metadata=LABELS, features=LABELS.copy(), labels=np.ones(1)), "read_rows")
    stubs.gives([], "hospital_parts", "fold_parts")
    stubs.gives({}, "score_parts")
    stubs.gives("", "tabulate", "as_markdown", "conclusion")
    stubs.writes("write_csv", "write_text")
    return hospitals.main(["--data", data, "--out", out])


def run_imbalance(stubs, out, data):
    stubs.gives((None, SimpleNamespace(head_epochs=0)), "parse_fusion_options")
    stubs.gives(np.array([0, 1]), "training_labels")
    stubs.gives(NOTHING, "compare_networks")
    stubs.gives("", "as_markdown", "format_table", "summary")
    stubs.writes("write_text", "draw_figure")
    return imbalance.main(["--data", data, "--artifacts", data, "--out", out])


def run_archives_study(stubs, out, data):
    def trained(study, variants):
        put(study.out / "none" / archives.FINISHED, "{}")  # kept from run to run
        return SimpleNamespace(table=NOTHING, as_markdown=lambda label: stubs.variant, gain=lambda mode: "")

    stubs.patch.setattr(archives, "compare_networks", trained)
    stubs.gives("", "format_table")
    return archives.main(["--data", data, "--artifacts", data, "--archives", data, "--out", out])


def run_synthetic(stubs, out, data):
    seed = str(len(stubs.variant))
    return synthetic.main(["--out", out, "--patients", "2", "--lesions", "4", "--seed", seed, "--jobs", "1"])


def run_push(stubs, out, data):
    facts = {"fallbacks": {}, "versions": {}, "notes": [], "image_scored": 1, "lesions": 1, "variant": stubs.variant}

    def fetch(kernel, folder):
        put(folder / "submission.csv", stubs.variant)
        put(folder / "run.json", json.dumps(facts))

    stubs.patch.setattr(push.kernels, "fetch_output", fetch)
    stubs.gives(["a"], "public_test_ids")
    stubs.gives(pd.Series([0.5]), "checked_submission")
    push.fetch_and_check("kernel", len(stubs.variant), Path(data), Path(out))
    return 0


#: Command -> what runs it, and its module.
COMMANDS = {
    "explore": (run_explore, explore),
    "triage": (run_triage, triage),
    "dry_run": (run_dry_run, dry_run),
    "grad_cam": (run_grad_cam, grad_cam),
    "explain": (run_explain, explain),
    "hospitals": (run_hospitals, hospitals),
    "imbalance": (run_imbalance, imbalance),
    "archives study": (run_archives_study, archives),
    "synthetic": (run_synthetic, synthetic),
    "push": (run_push, push),
}
#: The file of each that is there before the command has ever run, and that it would write.
TAKEN = {
    "triage": "notes.html",
    "grad_cam": "grad_cam.csv",
    "explain": "features.csv",
    "hospitals": "hospitals.md",
    "imbalance": "imbalance.md",
    "archives study": "archives.md",
    "synthetic": "train-metadata.csv",
}


@pytest.fixture(params=COMMANDS)
def command(request, synthetic_data, tmp_path, monkeypatch):
    """``run(variant)``: the command into ``.out``; ``.name``."""
    run_it, module = COMMANDS[request.param]

    def run(variant):
        with monkeypatch.context() as patch:
            return run_it(Stubs(patch, module, variant), str(run.out), str(synthetic_data))

    run.out, run.name = tmp_path / "out", request.param
    return run


def content(folder):
    """Every file below the folder, hidden ones too."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.exists() else []
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def status_of(run, variant):
    """The exit status, through the entry point."""
    with pytest.raises(SystemExit) as status:
        run_command(lambda: run(variant))
    return status.value.code


class FullDisk:
    """A disk without space at the ``number``-th file that gets its name, or folder that is made or renamed."""

    def __init__(self, patch, number):
        self.left = number
        for name in ("replace", "rename", "mkdir"):
            original = getattr(Path, name)
            patch.setattr(Path, name, lambda *given, original=original, **more: self.count(original, *given, **more))

    def count(self, original, *given, **more):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(given[0]))
        return original(*given, **more)


def test_a_full_disk_at_any_write_leaves_the_old_files_or_the_new_ones(command, monkeypatch):
    assert command("new") == 0
    new = content(command.out)
    assert command("older") == 0
    old = content(command.out)
    assert old.keys() == new.keys() or command.name == "triage"
    seen = set()
    for number in range(1, 60):
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, number)
            status = status_of(command, "new")
        found = content(command.out)
        if disk.left > 0:
            break
        assert status == 2
        if command.name == "push":  # nothing that was not checked can be submitted
            found.pop("push.json", None)
            assert found in ({name: old[name] for name in found}, {name: new[name] for name in found})
        else:
            assert found in (old, new)
        seen.add(found == new)
        if found == new:
            assert command("older") == 0
    assert status == 0
    assert found == new
    assert number > 3


def test_a_second_run_says_who_is_at_work(command, monkeypatch):
    assert command("new") == 0
    before = content(command.out)
    with artifact_folder.locked(command.out), pytest.raises(InputError, match=f"{os.getpid()} on .* since "):
        command("other")
    assert content(command.out) | before == content(command.out)


def test_files_of_others_stay_and_are_not_written_over(command):
    command.out.mkdir()
    (command.out / "thesis.tex").write_text("mine")
    if command.name in TAKEN:
        (command.out / TAKEN[command.name]).write_text("mine")
        before = content(command.out)
        assert status_of(command, "new") == 2
        assert content(command.out) == before
        (command.out / TAKEN[command.name]).unlink()
    assert command("new") == 0
    assert command("other") == 0
    assert (command.out / "thesis.tex").read_text() == "mine"


def test_a_folder_is_not_read_while_its_swap_is_unfinished(synthetic_data, tmp_path, monkeypatch):
    def run(variant):
        return run_synthetic(Stubs(monkeypatch, synthetic, variant), str(tmp_path / "out"), str(synthetic_data))

    run("older")
    old = content(tmp_path / "out")
    run("new")
    new = content(tmp_path / "out")
    with monkeypatch.context() as patch:
        finish, states = artifact_folder.finish_swap, []

        def die_in_the_middle(folder):
            if (folder / artifact_folder.COMMITTED).is_dir():
                states.append(1)
                (folder / artifact_folder.COMMITTED / "truth.csv").replace(folder / "truth.csv")
                raise KeyboardInterrupt
            finish(folder)

        patch.setattr(artifact_folder, "finish_swap", die_in_the_middle)
        with pytest.raises((KeyboardInterrupt, OSError)):
            run("older")
    assert states
    assert content(tmp_path / "out").keys() != new.keys()
    with pytest.raises(ArgumentTypeError):
        existing_folder(str(tmp_path / "out"))
    with artifact_folder.locked(tmp_path / "out"):
        assert existing_folder(str(tmp_path / "out"))
    assert content(tmp_path / "out") == old


def test_a_page_of_another_command_is_not_written_over(synthetic_data, tmp_path, monkeypatch):
    run_explore(Stubs(monkeypatch, explore, "new"), str(tmp_path / "out"), str(synthetic_data))
    before = content(tmp_path / "out")
    for run_it, module in (COMMANDS["dry_run"], COMMANDS["triage"]):
        with pytest.raises(InputError, match=r"index\.html"):
            run_it(Stubs(monkeypatch, module, "new"), str(tmp_path / "out"), str(synthetic_data))
    assert content(tmp_path / "out") == before
