"""The house: which room may know of which, read from the source and seen at run time."""

import ast
import pathlib
import subprocess
import sys

import pytest

import lab

FOLDER = pathlib.Path(lab.__file__).parent
MODULES = {
    ".".join(("lab", *path.relative_to(FOLDER).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(FOLDER.rglob("*.py"))
}
# What one trial is built of: plain arguments, no settings.
PARTS = [
    f"lab.{name}"
    for name in (
        *("checkpoints", "data", "devices", "histograms", "layers", "losses", "optimizers"),
        *("recorder", "rundir", "step", "stop"),
    )
    if f"lab.{name}" in MODULES
]
ABOVE_THE_PARTS = {f"lab.{name}" for name in ("config", "flags", "grid", "main", "trial", "worker")}
READERS = [
    name
    for name in MODULES
    if name in ("lab.results", "lab.statistics", "lab.tables") or name.startswith("lab.report")
]
# The training loop; a report may build a model, and compute with it.
TRAINING = {f"lab.{name}" for name in ("recorder", "step", "trial", "worker")}
WITHOUT_TENSORFLOW = ["lab.config", "lab.data", "lab.errors", "lab.flags", "lab.grid", "lab.main"]


def tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(name):
    """Every module that the file names in an import, inside functions too; `from lab import x`
    counts as lab.x."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


IMPORTS = {name: imports(name) for name in MODULES}


def reachable(name):
    """What `name` imports, and what that imports, within lab."""
    seen, new = set(), {name}
    while new:
        seen |= new
        new = {other for one in new for other in IMPORTS[one] & MODULES.keys()} - seen
    return seen - {name}


def outside(name):
    """The first names of all packages that `name` loads by itself or through others."""
    return {module.split(".")[0] for one in {name, *reachable(name)} for module in IMPORTS[one]}


def test_the_rooms_are_found():
    """The other tests would hold of an empty house."""
    assert {"lab.config", "lab.flags", "lab.trial", "lab.step", "lab.results"} <= MODULES.keys()
    assert {"lab.histograms", "lab.losses", "lab.optimizers"} <= IMPORTS["lab.step"]
    assert "tensorflow" in outside("lab.step") and "lab.optimizers" in reachable("lab.trial")
    assert len(PARTS) >= 8 and "lab.results" in READERS


def test_imports_run_downwards_only():
    """No room is below itself."""
    for name in MODULES:
        around = [other for other in reachable(name) if name in reachable(other)]
        assert not around, f"{name} and {around} import each other"


@pytest.mark.parametrize("name", PARTS)
def test_parts_take_plain_arguments(name):
    assert not reachable(name) & ABOVE_THE_PARTS


def test_the_trial_does_not_know_who_runs_it():
    assert not reachable("lab.trial") & {"lab.flags", "lab.grid", "lab.main", "lab.worker"}


@pytest.mark.parametrize("name", READERS)
def test_readers_do_not_train(name):
    assert not reachable(name) & TRAINING


@pytest.mark.parametrize("name", ["lab.results", "lab.statistics", "lab.tables"])
def test_the_table_needs_no_tensorflow(name):
    if name in MODULES:
        assert not outside(name) & {"tensorflow", "tensorboard", "keras"}


@pytest.mark.parametrize("name", ["lab.config", "lab.flags", "lab.errors"])
def test_settings_need_no_tensorflow(name):
    assert not outside(name) & {"tensorflow", "tensorboard", "keras"}


def test_only_flags_reads_flags():
    assert [name for name in MODULES if any(m.split(".")[0] == "absl" for m in IMPORTS[name])] == [
        "lab.flags"
    ]


def test_no_keras():
    """Neither keras, nor tf.keras, nor TensorFlow's own copy of it."""
    for name in MODULES:
        assert not [m for m in IMPORTS[name] if "keras" in m]
        for node in ast.walk(tree(name)):
            assert not (isinstance(node, ast.Attribute) and "keras" in node.attr), name


def test_only_the_step_runs_on_replicas():
    """`strategy.run`, under whatever name the strategy goes; devices.py has workers agree by it."""
    callers = {
        name
        for name in MODULES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute)
        and node.attr == "run"
        and "strategy" in ast.unparse(node.value).lower()
    }
    assert callers == {"lab.step", "lab.devices"}


def test_loaded_without_tensorflow():
    """At run time too: these are loaded before, or without, the seconds that TensorFlow takes."""
    names = [name for name in [*WITHOUT_TENSORFLOW, "lab.results"] if name in MODULES]
    program = (
        f"import sys, {', '.join(names)}\n"
        "heavy = {'tensorflow', 'tensorboard', 'keras'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_a_file_opens_with_what_it_is_for(name):
    assert ast.get_docstring(tree(name))
