"""Does anything in the source run what it reads, or open what it should keep closed?

The rules are read from the syntax; that the harm is really not done is in
tests/fault/test_hostile_checkpoints.py and tests/fault/test_secrets.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.shape.reading import Source, all_sources, source_from

# Modules that run what they read.
RUNNING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
# torch's own reader and writer of checkpoints unpickle the index, and values that are no tensors.
OURS_ALONE = {"FileSystemReader", "FileSystemWriter", "DefaultLoadPlanner"}
STORAGE = "train/checkpoints/shards.py"
NEEDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import; the name is empty where the module itself is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)


def attributes(tree: ast.AST, module: str) -> set[str]:
    """What a file takes from `module` by its name; the name itself where it takes nothing so."""
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == module
    }
    return found or {module}


def unsafe(source: Source) -> list[str]:
    """What of a file runs what it reads, or hands words to a shell."""
    found = []
    for line, module, name in imports(source.tree):
        taken = {name} if name else attributes(source.tree, module)
        # An error to be caught is not a reader.
        if module.split(".")[0] in RUNNING and not all(one.endswith("Error") for one in taken):
            found.append(f"{source.path}:{line}: {module} runs what it reads")
        if name in OURS_ALONE and source.path != STORAGE:
            found.append(f"{source.path}:{line}: {name} unpickles; use {STORAGE}")
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        words = {
            word.arg: word.value.value
            for word in node.keywords
            if isinstance(word.value, ast.Constant)
        }
        where = f"{source.path}:{node.lineno}: {called}"
        if called in FORBIDDEN:
            found.append(f"{where} runs its argument")
        if words.get("shell") is True:
            found.append(f"{where} hands words to a shell")
        if called in NEEDED and words.get(NEEDED[called][0]) is not NEEDED[called][1]:
            found.append(f"{where} without {NEEDED[called][0]}={NEEDED[called][1]}")
        if called.endswith("Environment") and words.get("autoescape") is not True:
            found.append(f"{where} without autoescape=True: a page would obey what it shows")
    return found


def test_nothing_runs_what_it_reads() -> None:
    assert [line for source in all_sources() for line in unsafe(source)] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle\npickle.loads(x)\npickle.UnpicklingError",
        "from pickle import loads",
        "from torch.distributed.checkpoint.filesystem import FileSystemReader",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(words, shell=True)",
        "jinja2.Environment()",
    ],
)
def test_what_is_unsafe_is_seen(text: str) -> None:
    assert unsafe(source_from("train/toy.py", text))


def test_what_is_safe_is_let_through() -> None:
    text = """
from pickle import PicklingError
import pickle
pickle.UnpicklingError
torch.load(path, weights_only=True)
np.load(path, allow_pickle=False)
model.eval()
subprocess.run(words)
jinja2.Environment(autoescape=True)
"""
    assert unsafe(source_from("train/toy.py", text)) == []
