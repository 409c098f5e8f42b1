"""Files of one's own, imported: their neighbours, errors in one line, what the digest holds."""

import os
import re
import sys

import pytest

import lab
from lab.errors import LabError, blamed
from lab.settings import source
from lab.training import user_code


def load(path, flag="model"):
    return user_code.load(source.read(flag, str(path)))


def failure(path):
    with pytest.raises(LabError) as error:
        load(path)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


def folder(base, name, width=3):
    """A model, a module beside it, and one of a package beside it."""
    path = base / name
    (path / "parts").mkdir(parents=True)
    (path / "net.py").write_text(
        "import parts.deep\nimport sizes\nfrom sizes import WIDTH\n\n\n"
        "def make():\n    return WIDTH + parts.deep.MORE\n\n\n"
        "def late():\n    import late\n    return late.VALUE\n"
    )
    (path / "sizes.py").write_text(f"import lab.errors\nWIDTH = {width}\n")
    (path / "late.py").write_text(f"VALUE = {width}\n")
    (path / "parts" / "__init__.py").write_text("")
    (path / "parts" / "deep.py").write_text("MORE = 10\n")
    return path


@pytest.fixture(autouse=True)
def unchanged():
    path, modules = [*sys.path], {*sys.modules}
    yield
    sys.path[:] = path
    user_code._folders.clear()
    for name in {*sys.modules} - modules:
        if not name.startswith("lab"):
            del sys.modules[name]


def test_neighbours_are_imported_each_from_its_own_folder(tmp_path):
    first, second = folder(tmp_path, "a b"), folder(tmp_path, "c,ü", 4)
    makes = [load(path / "net.py:make").value for path in (first, second)]
    assert [make() for make in makes] == [13, 14]
    late = load(second / "net.py:late").value
    assert not list(tmp_path.rglob("__pycache__"))  # which would hide a change
    assert late() == 4


def test_the_digest_is_of_the_file_and_all_that_it_imports(tmp_path):
    first, second = folder(tmp_path, "one"), folder(tmp_path, "two")
    before = load(first / "net.py:make").digest
    assert len(before) == 64
    assert load(second / "net.py:make").digest == before  # wherever it lies
    for name in ("net.py", "sizes.py", "parts/deep.py"):
        with open(first / name, "a") as file:
            file.write("\n")
        changed = load(first / "net.py:make").digest
        assert changed != before
        before = changed
    (first / "late.py").write_text("VALUE = 5\n")  # not imported
    assert load(first / "net.py:make").digest == before


def test_a_file_is_run_once_and_again_when_it_or_a_neighbour_has_changed(tmp_path):
    path = folder(tmp_path, "x")
    make, late = load(path / "net.py:make").value, load(path / "net.py:late").value
    assert make.__globals__ is late.__globals__
    assert load(path / "net.py:make").value is make
    (path / "sizes.py").write_text("WIDTH = 7\n")  # as many bytes in the same second, or not
    assert load(path / "net.py:make").value() == 17
    assert make() == 13


def test_the_lab_itself_is_no_neighbour(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("import lab.errors\nfrom lab.settings import fields\nvalue = fields\n")
    error = sys.modules["lab.errors"].LabError
    load(f"{path}:value")
    load(f"{path}:value")
    assert sys.modules["lab.errors"].LabError is error


def test_a_ready_made_model_is_imported_as_the_module_that_it_is():
    from lab.models.mlp import MLP

    found = user_code.load(source.read("model", "mlp"))
    assert found.value is MLP and len(found.digest) == 64


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("import nowhere_at_all\nmake = 3", 1, "ModuleNotFoundError: No module named 'nowhere_at"),
        ("\n\nmake = 1 / 0", 3, "ZeroDivisionError: division by zero"),
        ("def make(): ...\nraise ValueError('two\\nlines')", 2, "ValueError: two lines"),
        ("make = 1\nraise SystemExit(3)", 2, "SystemExit: 3"),
        ("import json\nmake = json.loads('x')", 2, "JSONDecodeError"),
        ("from . import sizes\nmake = 3", 1, "ImportError"),
    ],
)
def test_an_error_is_one_line_that_says_where(tmp_path, text, line, words):
    path = tmp_path / "net.py"
    path.write_text(text)
    before = {*sys.modules}
    assert failure(f"{path}:make").startswith(f"{path}, line {line}: {words}")
    assert not {name for name in {*sys.modules} - before if name.startswith("net")}
    assert sys.path[0] != str(tmp_path)


def test_an_error_of_a_neighbour(tmp_path):
    path = folder(tmp_path, "x")
    (path / "sizes.py").write_text("\nWIDTH = 1 / 0\n")
    assert failure(path / "net.py:make").startswith(f"{path / 'sizes.py'}, line 2: ZeroDivision")
    (path / "sizes.py").write_text("\n\nWIDTH = = 3\n")
    assert failure(path / "net.py:make").startswith(f"{path / 'sizes.py'}, line 3: SyntaxError")
    (path / "sizes.py").write_text("WIDTH = 30\n")
    assert load(path / "net.py:make").value() == 40


def test_an_error_of_what_was_loaded(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("import json\n\n\ndef make(text: str):\n    return json.loads(text)\n")
    found = source.read("model", f"{path}:make")
    with pytest.raises(LabError, match="line 5: JSONDecodeError"), blamed():
        user_code.load(found).value("{")
    with pytest.raises(LabError, match=r"^as it is$"), blamed():
        raise LabError("as it is")
    with pytest.raises(KeyboardInterrupt), blamed():
        raise KeyboardInterrupt


def test_a_name_that_is_not_there_after_all(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("if False:\n    make = 3\n")
    assert "does not define make" in failure(f"{path}:make")


def test_relative_paths_do_not_move_with_the_process(tmp_path, monkeypatch):
    folder(tmp_path, "x")
    monkeypatch.chdir(tmp_path)
    found = source.read("model", f"x{os.sep}net.py:make")
    monkeypatch.chdir("/")
    assert user_code.load(found).value() == 13


def test_a_folder_whose_name_begins_as_the_labs_is_the_users():
    path = os.path.dirname(os.path.abspath(lab.__file__)) + "_models/net.py"
    words = re.escape(f"ZeroDivisionError: division by zero ({path}")
    with pytest.raises(LabError, match=words), blamed("the model"):
        exec(compile("1 / 0", path, "exec"))
    with pytest.raises(LabError, match="SyntaxError: odd"), blamed("the model"):
        raise SyntaxError("odd")
