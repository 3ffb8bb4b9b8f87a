"""No call in the tree that runs what a file says, or that reads pictures around the one reader."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("unidiff_jax", "configs", "data_pipelines", "launch")

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
"""What unpickles."""

CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "yaml.load": "makes any object: yaml.safe_load",
    "yaml.unsafe_load": "makes any object: yaml.safe_load",
    "yaml.full_load": "makes any object: yaml.safe_load",
    "torch.jit.load": "runs what it loads",
    "cv2.imread": "has no bound: outside.decode_values",
    "cv2.imdecode": "has no bound: outside.decode_values",
    "Image.open": "has no bound: outside.decode_picture",
    "shutil.unpack_archive": "writes where the archive says",
}

METHODS = {"extract": "writes where the archive says", "extractall": "writes where it says"}

READER = "unidiff_jax/outside.py"
"""Where pictures are opened."""


def faults(source, *, path="x.py"):
    """(line, reason) of each call that is not allowed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if _is(key, "trust_remote_code") and not _is(value, False):
                    yield node.lineno, "trust_remote_code runs code of a checkpoint"
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            if name in CALLS and not (name == "Image.open" and path == READER):
                yield node.lineno, f"{name} {CALLS[name]}"
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield node.lineno, f"{name} {METHODS[node.func.attr]}"
            for key in ("allow_pickle", "trust_remote_code"):
                if key in given and not _is(given[key], False):
                    yield node.lineno, f"{key} is not False"
            if name in ("np.load", "numpy.load") and "allow_pickle" not in given:
                yield node.lineno, "np.load without allow_pickle=False"
            if name == "torch.load" and not _is(given.get("weights_only"), True):
                yield node.lineno, "torch.load without weights_only=True"


def _is(node, value):
    return (isinstance(node, ast.Constant) and node.value is value) or (
        isinstance(node, ast.Constant) and isinstance(value, str) and node.value == value
    )


def test_the_tree_has_none():
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            found += [f"{name}:{line} {why}" for line, why in faults(path.read_text(), path=name)]
    assert not found, "\n".join(found)


def test_pictures_are_opened_in_one_place():
    assert "Image.open(" in (ROOT / READER).read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "np.load('a.npz')",
        "np.load('a.npz', allow_pickle=True)",
        "torch.load('a.pt')",
        "torch.load('a.pt', weights_only=False)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "Image.open('a.png')",
        "cv2.imread('a.png')",
        "archive.extractall(folder)",
    ],
)
def test_each_is_found(source):
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    [
        "np.load('a.npz', allow_pickle=False)",
        "torch.load('a.pt', weights_only=True)",
        "yaml.safe_load(text)",
        "ast.literal_eval(text)",
        "model.eval()",
        "options = {'trust_remote_code': False}",
    ],
)
def test_others_are_not(source):
    assert not list(faults(source))
