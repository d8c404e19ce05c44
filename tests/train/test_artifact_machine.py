"""Any order of trainings, faults and readings of one artifact folder: a reader always finds one whole set of files."""

import shutil
import tempfile
from pathlib import Path

import pytest
from failing_files import Killed, stopping_at
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pretended_stages import read_set, run_stage, values

from inference.artifacts import MANIFEST, load_manifest
from scale.artifact_folder import locked
from train.manifest import NETWORKS, READS, read_manifest
from utils import InputError

STAGES = ("folds", "tabular", "network", "image_only")
STAGE = st.sampled_from(STAGES)
VALUE = st.integers(1, 3)
STOP = st.integers(1, 35)  # a stage changes files about thirty times


class ArtifactFolder(RuleBasedStateMachine):
    """``expected`` is what the folder must hold: stage -> section."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder, self.data = self.root / "artifacts", self.root / "data.csv"
        self.data.write_text("0")
        self.writes, self.expected = 0, {}

    @initialize(stages=st.integers(0, 4))
    def first_training(self, stages):
        for name in STAGES[:stages]:
            self.train(name, 1, replace=False)

    def teardown(self):
        shutil.rmtree(self.root)

    def after(self, name, value):
        """What the folder holds when the stage succeeds."""
        kept = {stage: section for stage, section in self.expected.items() if name != stage and name not in READS[stage]}
        made_of = {read: self.expected[read] for read in READS[name]}
        return kept | {name: {"value": value, "data": self.data.read_text(), "made_of": made_of}}

    def may_run(self, name, replace):
        dropped = [stage for stage in self.expected if name in READS[stage]]
        return set(READS[name]) <= set(self.expected) and (replace or not set(dropped) & set(NETWORKS))

    def found(self):
        return read_set(self.folder) if read_manifest(self.folder) else {}

    @rule(name=STAGE, value=VALUE, replace=st.booleans())
    def train(self, name, value, replace):
        same = self.expected.get(name, {}) == self.after(name, value).get(name) if self.may_run(name, True) else False
        if same and not replace:
            assert not run_stage(self.folder, name, value, self.data)
        elif self.may_run(name, replace):
            assert run_stage(self.folder, name, value, self.data, replace)
            self.expected = self.after(name, value)
            files = {*load_manifest(self.folder)["files"], MANIFEST}
            assert {path.name for path in self.folder.iterdir()} == files  # nothing is left of killed runs
        else:
            with pytest.raises(InputError):
                run_stage(self.folder, name, value, self.data, replace)

    @rule(name=STAGE, value=VALUE, stop=STOP)
    def killed(self, name, value, stop):
        self.stopped(name, value, stop, full=False)

    @rule(name=STAGE, value=VALUE, stop=STOP)
    def full_disk(self, name, value, stop):
        before = self.expected
        self.stopped(name, value, stop, full=True)
        if self.expected == before and self.folder.exists():
            assert not [path for path in self.folder.iterdir() if path.name.startswith(".staging")]

    def stopped(self, name, value, stop, full):
        if not self.may_run(name, True):
            return
        after = self.after(name, value)
        with stopping_at(stop, full) as changes:
            try:
                run_stage(self.folder, name, value, self.data, replace=True)
            except Killed:
                assert not full
            except (OSError, InputError) as error:  # the entry point makes a sentence of both
                assert full, error
        found = self.found()
        assert found in (self.expected, after)
        assert changes.stopped or found == after
        self.expected = found

    @rule(name=STAGE, value=VALUE)
    def second_run(self, name, value):
        with locked(self.folder), pytest.raises(InputError, match="in use"):
            run_stage(self.folder, name, value, self.data, replace=True)

    @rule(name=STAGE, value=VALUE)
    def changed_input(self, name, value):
        """The data changes while a stage is at work."""
        if not self.may_run(name, True):
            return
        with pytest.raises(InputError, match="changed meanwhile"):
            run_stage(self.folder, name, value, self.data, replace=True, meanwhile=self.change_data)

    def change_data(self):
        self.writes += 1
        self.data.write_text(str(self.writes))

    @precondition(lambda self: self.folder.exists())
    @rule()
    def copy(self):
        """Another machine gets the folder as it is, perhaps amid a swap."""
        copy = self.root / "copy"
        shutil.copytree(self.folder, copy)
        shutil.rmtree(self.folder)
        copy.rename(self.folder)

    @invariant()
    def a_reader_finds_one_whole_set(self):
        assert values(self.found()) == values(self.expected)
        assert self.found() == self.expected


TestArtifactFolder = ArtifactFolder.TestCase
TestArtifactFolder.settings = settings(
    max_examples=45, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
