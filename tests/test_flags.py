"""The command line: every flag there and back, every error in one line, before TensorFlow."""

import dataclasses
import math

import pytest

from lab.errors import LabError
from lab.settings import command_line
from lab.settings.config import WATCHABLE, Config, Settings
from lab.settings.fields import allowed

FIELDS = {
    field.name: field
    for kind in (Config, Settings)
    for field in dataclasses.fields(kind)
    if field.name != "model_arguments"  # see test_source.py
}


def parse(*arguments):
    """The one config, and the settings."""
    (config,), settings = command_line.parse(["train", *arguments])
    return config, settings


def configs(*arguments):
    return command_line.parse(["train", *arguments])[0]


def failure(*arguments):
    with pytest.raises(LabError) as error:
        configs(*arguments)
    text = str(error.value)
    assert text.strip() and len(text.splitlines()) == 1, text
    return text


def as_text(value):
    return ",".join(value) if isinstance(value, tuple) else str(value)


def good_values():
    for name, field in FIELDS.items():
        limits = field.metadata
        if field.type == "tuple[str, ...]":
            yield from ((name, value) for value in [(), WATCHABLE, *((w,) for w in WATCHABLE)])
        elif name == "model":
            yield name, "mlp"  # see test_source.py
        elif "choices" in limits:
            yield from ((name, value) for value in limits["choices"])
        elif field.type == "bool":
            yield from ((name, True), (name, False))
        elif name in ("logdir", "run_name", "data"):
            yield name, "a b/c,d=e"
            if name != "data":
                yield name, ""
        elif field.type == "str":
            continue  # these have a form of their own: see below
        else:
            yield name, limits["least"] + (3 if field.type == "int" else 0.125)
            yield name, limits["least"]


@pytest.mark.parametrize(("name", "value"), list(good_values()))
def test_a_value_reaches_its_field_and_no_other(name, value):
    config, settings = parse(f"--{name}={as_text(value)}")
    kind = Config if name in {f.name for f in dataclasses.fields(Config)} else Settings
    expected = {Config: Config(), Settings: Settings()}
    expected[kind] = kind(**{name: value})
    assert (config, settings) == (expected[Config], expected[Settings])
    found = getattr(config if kind is Config else settings, name)
    assert type(found) is type(FIELDS[name].default)


def test_no_flags_give_the_defaults():
    assert parse() == (Config(), Settings())


def test_parsing_leaves_nothing_behind():
    parse("--seed=5", "--watch=")
    assert parse()[0] == Config()


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--seed", "7"], "seed", 7),
        (["-seed=7"], "seed", 7),
        (["--seed=7", "--seed=8"], "seed", 8),
        (["--learning_rate=1e-3"], "learning_rate", 0.001),
        (["--learning_rate=1"], "learning_rate", 1.0),
        (["--epsilon_inside_root"], "epsilon_inside_root", True),
        (["--noepsilon_inside_root"], "epsilon_inside_root", False),
        (["--epsilon_inside_root", "--noepsilon_inside_root"], "epsilon_inside_root", False),
        (["--epsilon_inside_root=false"], "epsilon_inside_root", False),
        (["--watch="], "watch", ()),
        (["--watch=gradients,weights"], "watch", ("gradients", "weights")),
        ([f"--seed={2**63 - 1}"], "seed", 2**63 - 1),
    ],
)
def test_ways_to_write_a_flag(arguments, field, value):
    config, _ = parse(*arguments)
    assert getattr(config, field) == value
    assert config == dataclasses.replace(Config(), **{field: value})


# Several values: several trials.


def test_lists_are_products():
    """In the order of a nested loop over the fields, whatever the order of the flags."""
    found = configs("--learning_rate=0.1,0.01", "--optimizer=sgd,adam", "--n_hidden_1=3")
    assert found == [
        Config(n_hidden_1=3, optimizer=optimizer, learning_rate=rate)
        for optimizer in ("sgd", "adam")
        for rate in (0.1, 0.01)
    ]


def test_a_list_says_a_value_only_once():
    assert configs("--learning_rate=0.1,1e-1,0.10") == [Config(learning_rate=0.1)]


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("7,3", [7, 3]), ("1", [0]), ("", [9])]
)
def test_seeds(text, seeds):
    found = configs(f"--seeds={text}", "--seed=9", "--optimizer=sgd,adam")
    assert found == [Config(seed=s, optimizer=o) for s in seeds for o in ("sgd", "adam")]


@pytest.mark.parametrize("text", ["0", "-1", "1,1", "a", "1.5", "1,-2", "1;2", "1,"])
def test_wrong_seeds(text):
    assert f"--seeds={text}" in failure(f"--seeds={text}")


@pytest.mark.parametrize(
    "text", ["", "0", "1/", "/2", "2/2", "-1/2", "a/b", "0/0", "0/1/2", "1.0/2"]
)
def test_wrong_shards(text):
    assert f"--shard={text}" in failure(f"--shard={text}")


def bad_values():
    """(name, text) of every kind of wrong value, from the fields."""
    for name, field in FIELDS.items():
        limits = field.metadata
        texts = {
            "int": ["three", "2.5", "", "1e3", "nan"],
            "float": ["much", "", "nan", "inf", "-inf", "1e999", "0.1.2"],
            "bool": ["maybe", "2", ""],
            "str": [],
            "tuple[str, ...]": ["weight", "weights,weights", "weights,,gradients", "Weights", '"'],
        }[str(field.type)]
        if "choices" in limits and field.type == "str":
            known = limits["choices"][0]
            texts = ["", "nonsense", known.upper(), f"{known},", f"{known},x"]
        if "least" in limits:
            texts.append(str(limits["least"] - 1))
        if "below" in limits:
            texts.append(str(limits["below"]))
        yield from ((name, text) for text in texts)


@pytest.mark.parametrize(("name", "text"), list(bad_values()))
def test_a_wrong_value_is_named_with_what_is_allowed(name, text):
    message = failure(f"--{name}={text}")
    assert name in message
    assert allowed(FIELDS[name]) in message
    for choice in FIELDS[name].metadata.get("choices", ()):
        assert choice in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning_rat=0.1"], ["learning_rat", "learning_rate"]),
        (["--optimiser=sgd"], ["optimiser", "optimizer"]),
        (["--n_hidden_3=5"], ["n_hidden_3", "n_hidden_1"]),
        (["--quite_something_else"], ["quite_something_else", "--help"]),
        (["--noquite_something_else"], ["quite_something_else", "--help"]),
        (["--v=1"], ["v", "--help"]),
        (["--noseed"], ["seed"]),
        (["--seed"], ["seed"]),
        (["sgd"], ["sgd", "--help"]),
        (["--seed=1", "learning_rate=0.1"], ["learning_rate=0.1", "--help"]),
        (["--", "--seed=1"], ["--seed=1", "--help"]),
        (["--flagfile=/no/such/file"], ["/no/such/file"]),
    ],
)
def test_what_is_no_flag_is_named(arguments, words):
    message = failure(*arguments)
    for word in words:
        assert word in message


def test_unset_values_do_not_slip_through_undefok():
    """absl's --undefok lets a misspelt flag pass in silence: the name is then its user's wish."""
    assert parse("--undefok=sed", "--sed=1")[0] == Config()
    failure("--undefok=sed", "--sedd=1")


def test_flagfile(tmp_path):
    inner, outer = tmp_path / "inner.flags", tmp_path / "outer.flags"
    inner.write_text("--optimizer=adam\n--watch=\n")
    outer.write_text(f"# a comment\n\n--seed=4\n--flagfile={inner}\n--learning_rate=0.5\n")
    config, _ = parse(f"--flagfile={outer}", "--learning_rate=0.25")
    assert config == Config(seed=4, optimizer="adam", watch=(), learning_rate=0.25)


@pytest.mark.parametrize(
    ("line", "words"),
    [("--optimizer=adm", ["adm", "adagrad"]), ("--sed=4", ["sed", "seed"]), ("seed=4", ["seed=4"])],
)
def test_wrong_lines_of_a_flagfile(tmp_path, line, words):
    path = tmp_path / "wrong.flags"
    path.write_text(f"--n_hidden_1=5\n{line}\n")
    message = failure(f"--flagfile={path}")
    assert all(word in message for word in words)


def test_a_flagfile_that_is_no_text(tmp_path):
    inner, outer = tmp_path / "inner.flags", tmp_path / "outer.flags"
    inner.write_bytes(b"--seed=4\n\xff\xfe\n")
    outer.write_text(f"--flagfile={inner}\n")
    for path in (inner, outer):
        assert str(path) in failure(f"--flagfile={path}")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(flag, capsys):
    with pytest.raises(SystemExit) as end:
        parse(flag)
    assert not end.value.code
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "--flagfile" in text
    groups = [f.metadata["group"] for f in FIELDS.values() if "group" in f.metadata]
    assert len(groups) == 8
    assert [line for line in lines if line.rstrip(":") in groups] == [f"{g}:" for g in groups]
    flat = " ".join(text.split())
    group = None
    shown = {}
    for line in lines:
        group = line.rstrip(":") if line.rstrip(":") in groups else group
        if line.startswith("  --"):
            head, _, _ = line.strip().partition(" ")
            shown[head] = group
    assert shown.pop("--model.KEY=VALUE") == "Model"
    for name, field in FIELDS.items():
        group = field.metadata.get("group", group)
        head = f"--[no]{name}" if field.type == "bool" else f"--{name}={as_text(field.default)}"
        assert shown.pop(head) == group
        assert " ".join(field.metadata["help"].split()) in flat
        for choice in field.metadata.get("choices", ()):
            assert choice in flat
        if field.type == "bool":
            entry = flat[flat.index(head) : flat.index(head) + 300]
            assert f"default {str(field.default).lower()}" in entry
    assert not shown


def test_numbers_keep_every_digit():
    value = math.nextafter(0.1, 1)
    assert parse(f"--learning_rate={value!r}")[0].learning_rate == value
