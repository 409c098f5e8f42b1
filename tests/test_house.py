"""The house: which room may import which, read from the source, and seen at run time."""

import ast
import collections
import functools
import pathlib
import subprocess
import sys

import pytest

import lab

FOLDER = pathlib.Path(lab.__file__).parent
# What each room of `lab` may import besides itself: a folder, or a file beside the folders.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "machine": set(),
    "terminal": set(),
    "settings": {"errors"},
    "data": {"errors"},
    "kernels": set(),
    "models": {"errors", "kernels"},
    "step": {"errors", "kernels", "machine", "processes"},
    "record": {"errors", "settings"},
    "processes": {"errors", "machine", "settings", "terminal"},
    "compare": {"errors", "record", "settings"},
    "analysis": {
        "kernels",
        *("compare", "data", "diagnosis", "errors", "machine", "models", "record", "settings"),
        "terminal",
    },
    "diagnosis": {"errors", "record", "settings", "terminal"},
    "report": {
        *("analysis", "compare", "diagnosis", "errors", "record", "settings", "terminal"),
        "training",
    },
    "viewer": {"diagnosis", "errors", "record", "settings", "terminal"},
    "training": {
        *("compare", "data", "diagnosis", "errors", "kernels", "machine", "models", "processes"),
        *("record", "settings", "step", "terminal"),
    },
}
# The rooms that load no TensorFlow, and of others the modules that do not.
LIGHT = (
    *("settings", "data", "processes", "compare", "diagnosis", "viewer"),
    *("training.main", "record.run", "report.main"),
)
HEAVY = {"tensorflow", "tensorboard", "keras"}


def modules(folder):
    """The path of every module of the package in `folder`, by its name."""
    return {
        ".".join((folder.name, *path.relative_to(folder).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in sorted(folder.rglob("*.py"))
    }


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = modules(FOLDER)
TREES = {name: parse(path) for name, path in MODULES.items()}


@functools.cache
def imports(name, lazy=True):
    """The modules that a file imports; `from lab import x` counts as lab.x.

    Args:
      lazy: whether imports inside functions count.
    """
    found = set()
    pending = list(TREES[name].body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
        elif lazy or not isinstance(node, ast.FunctionDef):
            pending += ast.iter_child_nodes(node)
    return found


def room(name):
    """The room of a module, or "" for the package itself."""
    return [*name.split("."), ""][1]


@functools.cache
def reachable(name, lazy=True):
    """What a module imports, and what that imports, within lab."""
    seen, new = set(), {name}
    while new:
        seen |= new
        new = {m for one in new for m in imports(one, lazy) if m in MODULES} - seen
    return seen - {name}


def test_every_room_is_known_and_there():
    found = {path.stem for path in FOLDER.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__pycache__"} == ROOMS.keys()
    for name in ROOMS:
        assert f"lab.{name}" in MODULES, f"{name} has no __init__.py"
    assert len(MODULES) > 40
    assert "lab.kernels.xla" in imports("lab.step.watch")


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_it_may(name):
    files = [module for module in MODULES if room(module) == name]
    used = {room(m) for file in files for m in imports(file) if m.startswith("lab.")} - {name}
    assert not used - ROOMS[name], "an import that is not allowed"
    assert not ROOMS[name] - used, "allowed, but not used: take it off the list"


def test_no_module_imports_itself_through_others():
    for name in MODULES:
        around = [other for other in reachable(name) if name in reachable(other)]
        assert not around, f"{name} and {around} import each other"


def test_no_room_imports_itself_through_others():
    below = {name: set(allowed) for name, allowed in ROOMS.items()}
    for _ in ROOMS:
        below = {
            name: {*seen, *(x for y in seen for x in below[y])} for name, seen in below.items()
        }
    assert not [name for name, seen in below.items() if name in seen]


def test_what_reads_runs_does_not_train():
    """But for the one module of the report that trains some of them again."""
    trains = {name for name in MODULES if room(name) == "report"} & {"lab.report.retrain"}
    assert trains and not {m for m in imports("lab.report.retrain", lazy=False) if "training" in m}
    for name in MODULES:
        direct = {m for m in imports(name) if m.startswith("lab.training")}
        assert room(name) != "report" or name in trains or not direct, name
        if room(name) in ("record", "analysis"):
            assert "lab.step.loop" not in reachable(name), name


@pytest.mark.parametrize("name", LIGHT)
def test_light_rooms_import_no_tensorflow(name):
    files = [m for m in MODULES if m == f"lab.{name}" or m.startswith(f"lab.{name}.")]
    assert files
    for file in files:
        for module in {file, *reachable(file, lazy=False)}:
            loaded = {m.split(".")[0] for m in imports(module, lazy=False)} & HEAVY
            assert not loaded, f"{file} loads {loaded} through {module}"


def test_light_rooms_load_no_tensorflow():
    """At run time too: they are loaded before, or without, the seconds that TensorFlow takes."""
    names = [m for m in MODULES if any(f"{m}.".startswith(f"lab.{name}.") for name in LIGHT)]
    program = (
        f"import sys, {', '.join(names)}\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_file_names_are_unique():
    stems = collections.Counter(path.stem for path in FOLDER.rglob("*.py"))
    twice = {name for name, count in stems.items() if count > 1}
    assert twice <= {"__init__", "__main__", "main"}


def test_public_names_are_used():
    """By the programs, the benchmark or the package's public face, not by tests alone."""
    used = collections.Counter()
    trees = dict(TREES)
    for path in (FOLDER.parent / "bench").glob("*.py"):
        trees[str(path)] = parse(path)
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.Name):
            used[node.id] += 1
        elif isinstance(node, ast.Attribute):
            used[node.attr] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used[node.value] += 1  # a type as text, a name in a table
    entry_points = (FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")
    unused = [
        f"{name}.{node.name}"
        for name, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not used[node.name]
        and f'"{name}:{node.name}"' not in entry_points
    ]
    assert not unused


def test_only_the_command_line_reads_flags():
    readers = [name for name in MODULES if any(m.split(".")[0] == "absl" for m in imports(name))]
    assert readers == ["lab.settings.command_line"]


def test_no_keras():
    """Neither keras, nor tf.keras, nor TensorFlow's own copy of it."""
    for name, tree in TREES.items():
        assert not [module for module in imports(name) if "keras" in module]
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.Attribute) and "keras" in node.attr), name


def test_only_the_step_runs_on_replicas():
    """`strategy.run`, under whatever name the strategy goes; workers agree by it, too."""
    callers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "run"
        and "strategy" in ast.unparse(node.value).lower()
    }
    assert {room(name) for name in callers} == {"step"}


@pytest.mark.parametrize("name", MODULES)
def test_a_file_opens_with_what_it_is_for(name):
    assert ast.get_docstring(TREES[name])
