"""Stages of an artifact folder that train nothing: each writes text files which say what they were made of."""

from inference.artifacts import checked_file, load_manifest
from train.manifest import READS, read_manifest, stage
from utils import InputError

FILES = {
    "folds": ["folds.csv"],
    "tabular": ["a.cbm", "b.cbm"],
    "network": ["n.h5"],
    "stacking": ["s.cbm"],
    "image_only": ["i.csv"],
}


def run_stage(folder, name, value, data=None, replace=False, meanwhile=None):
    """Runs a stage whose content is ``value`` and that of the stages it reads; False if it was done already.

    Args:
        folder: the artifact folder.
        name: of the stage.
        value: number; an even one leaves out the second file.
        data: an input file.
        replace: as ``stage`` takes it; the stage then runs also if it was done.
        meanwhile: called while the stage is at work.
    """
    with stage(folder, name, [data] if data else [], replace) as current:
        before = read_manifest(folder)
        if not set(READS[name]) <= set(before):
            raise InputError(f"{name} needs {READS[name]}; run them.")
        made_of = {read: before[read] for read in READS[name]}
        section = {"value": value, "data": data and data.read_text(), "made_of": made_of}
        if current.is_done(section, again=replace):
            return False
        for file in FILES[name][: 1 if value % 2 == 0 else 2]:
            (current.folder / file).write_text(f"{file} {section}")
        if meanwhile:
            meanwhile()
        current.record(section)
    return True


def read_set(folder):
    """Stage -> section, after a check that all files are of it, and that it was made of the other stages that are there."""
    manifest = load_manifest(folder)
    for name, owner in manifest["owners"].items():
        assert checked_file(folder, manifest, name).read_text() == f"{name} {manifest[owner]}"
    stages = {name: manifest[name] for name in READS if name in manifest}
    for section in stages.values():
        for read, content in section["made_of"].items():
            assert stages[read] == content
    return stages


def values(stages):
    """Stage -> its value."""
    return {name: section["value"] for name, section in stages.items()}
