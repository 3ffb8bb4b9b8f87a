"""The installation: what setup.py asks for, what is locked, and what the scripts promise."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("unidiff_jax", "configs", "data_pipelines", "launch")
SCRIPTS = (
    "environment",
    "test",
    "quickstart",
    "lock",
    "reproduce_unimog",
    "reproduce_unireal",
    "reproduce_univg",
    "reproduce_video",
    "subjects",
)

# The distribution that brings a module, where the names differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "array_record": "array-record",
    "cv2": "opencv-python-headless",
    "jax_cuda13_plugin": "jax",
    "jaxlib": "jax",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "skimage": "scikit-image",
    "tensorflow_datasets": "tensorflow-datasets",
    "yaml": "pyyaml",
}

# Read, not imported: a fresh environment has no setuptools.
SETUP = {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in ast.parse((ROOT / "setup.py").read_text()).body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
}
EXTRAS = SETUP["EXTRAS_REQUIRE"]


def _python_files():
    files = [path for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.py")]
    assert files
    return files


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _pins(name):
    """Requirement lines of a constraints file, without comments."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def _requirements(*extras):
    texts = list(SETUP["INSTALL_REQUIRES"])
    for extra in extras:
        texts += EXTRAS[extra]
    return [Requirement(text) for text in texts]


def test_extras():
    assert set(EXTRAS) == {"tpu", "cuda", "gcs", "torch", "eval", "identity", "curate", "dev"}
    for requirement in _requirements(*EXTRAS):
        assert requirement.specifier, f"{requirement} has no lower bound"


def test_every_import_is_required():
    names = {canonicalize_name(r.name) for r in _requirements(*EXTRAS)}
    local = {*PACKAGES, "tests", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    missing = {}
    for path in _python_files():
        for module in _imports(path):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in local:
                continue
            if canonicalize_name(DISTRIBUTIONS.get(top, top)) not in names:
                missing.setdefault(top, path.relative_to(ROOT).as_posix())
    assert not missing, f"not in setup.py: {missing}"


def test_constraints_lock_what_setup_asks_for():
    pins = _pins("constraints.txt")
    for pin in pins:
        assert re.fullmatch(r"==[^*]+", str(pin.specifier)), f"{pin} is not one version"
        assert not pin.extras, f"{pin}: pip takes no extras in a constraint"
    for python in ("3.11", "3.12"):
        env = {"python_version": python, "python_full_version": f"{python}.0"}
        valid = [p for p in pins if p.marker is None or p.marker.evaluate(env)]
        versions = {canonicalize_name(p.name): str(p.specifier).removeprefix("==") for p in valid}
        assert len(versions) == len(valid), f"{python}: a package is pinned twice"
        assert versions["jax"] == versions["jaxlib"] == "0.10.2"
        for requirement in _requirements(*EXTRAS):
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} is not locked; run launch/lock.sh"
            assert requirement.specifier.contains(version), f"{requirement}: locked is {version}"


def test_constraints_hold_no_address_and_name_their_command():
    text = (ROOT / "constraints.txt").read_text()
    assert "./launch/lock.sh" in text.splitlines()[1]
    assert not re.search(r"://|^-|--", text, re.MULTILINE)


@pytest.mark.parametrize("script", [*(f"launch/{name}.sh" for name in SCRIPTS), ".ci/run"])
def test_scripts_parse_and_are_executable(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_help_from_anywhere(name, tmp_path):
    script = ROOT / "launch" / f"{name}.sh"
    done = subprocess.run(
        [str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: ./launch/{name}.sh")


def test_environment_refuses_what_cannot_work(tmp_path):
    script = str(ROOT / "launch" / "environment.sh")
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "VENV": str(tmp_path / "venv"), "PYTHON": str(old)}
    for args, message in (
        ([], f"environment.sh: PYTHON={old} is not a Python 3.11 or later\n"),
        (
            ["touch"],
            "environment.sh: no extra 'touch'; there are: "
            "cuda curate dev eval gcs identity torch tpu\n",
        ),
    ):
        done = subprocess.run([script, *args], env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, message)
    assert not (tmp_path / "venv").exists()


def test_every_package_is_installed():
    found = {path.parent.relative_to(ROOT) for path in _python_files() if "tests" not in path.parts}
    for folder in found:
        assert (ROOT / folder / "__init__.py").exists(), f"{folder} would not be installed"


def test_layout():
    for path in _python_files():
        assert path.stem not in ("utils", "util", "misc"), f"{path}: say what it holds"
    tests = [path for path in (ROOT / "tests").rglob("*.py")]
    names = [path.name for path in tests if path.name != "conftest.py"]
    assert len(names) == len(set(names)), "pytest needs a name of its own for each test file"
    assert not list((ROOT / "tests").rglob("__init__.py"))
