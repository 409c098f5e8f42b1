"""Config: what it refuses and how it says so, the name of a run, the fingerprint."""

import dataclasses
import hashlib
import json
import math
import re

import pytest

from lab.errors import LabError
from lab.settings.config import NUMERICS, WATCHABLE, Config, Settings, placeless, renamed
from lab.settings.fields import allowed, from_json

FIELDS = {field.name: field for kind in (Config, Settings) for field in dataclasses.fields(kind)}
OWNER = {field.name: kind for kind in (Config, Settings) for field in dataclasses.fields(kind)}


def other(field):
    """A value that fits the field and is not its default."""
    if field.name == "watch":
        return ("weights",)
    if field.name == "model_arguments":
        return ("units=3",)
    if "choices" in field.metadata:
        return next(c for c in field.metadata["choices"] if c != field.default)
    return {
        bool: lambda d: not d,
        int: lambda d: d + 1,
        float: lambda d: d / 2 if d else 0.5,
        str: lambda d: d + "x",
    }[type(field.default)](field.default)


def bad_values():
    """(field, value) for every way in which a value does not fit, from the fields alone."""
    wrong_type = {
        "int": ["3", 3.0, 2.5, None, True, (1,)],
        "float": ["0.1", None, False, math.nan, math.inf, -math.inf, [0.1]],
        "bool": [0, 1, "true", None],
        "str": [None, 3, b"x", ("sgd",)],
        "tuple[str, ...]": ["weights", ["weights"], None, (3,)],
    }
    for name, field in FIELDS.items():
        for value in wrong_type[str(field.type)]:
            yield name, value
        limits = field.metadata
        if "choices" in limits and field.type != "str":
            yield from ((name, value) for value in [("weight",), ("weights", "weights")])
        if "choices" in limits and field.type == "str":
            for choice in limits["choices"]:
                yield name, choice.upper()
                yield name, f" {choice}"
            yield name, ""
            yield name, "net.py"
            yield name, "net.py:3x"
            if not limits.get("file"):
                yield name, "net.py:Net"
        if "least" in limits:
            yield name, limits["least"] - 1
            if field.type == "float":
                yield name, math.nextafter(limits["least"], -math.inf)
        if "below" in limits:
            yield name, limits["below"]


@pytest.mark.parametrize(("name", "value"), list(bad_values()))
def test_a_wrong_value(name, value):
    with pytest.raises(LabError) as error:
        OWNER[name](**{name: value})
    text = str(error.value)
    assert text.startswith(f"--{name}=") and "\n" not in text
    assert text.endswith(f"must be {allowed(FIELDS[name])}")


def test_an_error_is_one_line_whatever_the_value():
    with pytest.raises(LabError) as error:
        Config(optimizer="two\nlines")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", FIELDS)
def test_bounds_themselves_fit(name):
    limits = FIELDS[name].metadata
    values = [FIELDS[name].default, other(FIELDS[name]), *limits.get("choices", ())]
    if "least" in limits:
        values.append(limits["least"])
    if "below" in limits:
        down = limits["below"] - 1 if FIELDS[name].type == "int" else None
        values.append(math.nextafter(limits["below"], 0) if down is None else down)
    if name == "watch":
        values = [FIELDS[name].default, (), WATCHABLE, WATCHABLE[::-1], *((w,) for w in WATCHABLE)]
    if limits.get("file"):
        values += ["net.py:Net", "/a b/c,d/tä.py:_x1", "../.py:N"]
    for value in values:
        rest = {"model": "net.py:Net"} if name == "model_arguments" else {}
        assert getattr(OWNER[name](**rest | {name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimizer", "one of sgd, adam, rmsprop, adagrad, adadelta"),
        ("n_hidden_1", "an integer, at least 1 and below 2^31"),
        ("adam_beta_1", "a number, at least 0 and below 1"),
        ("epsilon_inside_root", "true or false"),
        ("watch", f"none or some of {', '.join(WATCHABLE)}, each once"),
        ("data", "a string"),
        ("model", "one of mlp, convnet, transformer, or FILE.py:NAME"),
        ("model_arguments", "a list"),
    ],
)
def test_what_is_allowed_in_words(name, words):
    assert allowed(FIELDS[name]) == words


def test_an_unknown_field():
    with pytest.raises(TypeError):
        Config(learning_rat=0.1)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


def test_the_defaults_are_the_recipe():
    """What shared tables of runs leave out, they leave to these."""
    config = Config()
    recipe = {
        "n_hidden_1": 128,
        "n_hidden_2": 256,
        "activation": "sigmoid",
        "initializer": "normal",
        "init_stddev": 0.05,
        "loss": "clipped_cross_entropy",
        "reduction": "sum",
        "epsilon": 1e-7,
        "epsilon_inside_root": False,
        "adam_beta_1": 0.9,
        "adam_beta_2": 0.999,
        "rmsprop_rho": 0.9,
        "adagrad_initial_accumulator": 0.1,
        "adadelta_rho": 0.95,
        "batch_size": 256,
        "training_steps": 3000,
        "threads": 2,
        "display_step": 100,
        "histogram_every": 1,
        "watch": ("weights", "gradients", "norms", "probes"),
        "model": "mlp",
        "model_arguments": (),
        "data": "mnist",
        "xla": "auto",
    }
    assert {name: getattr(config, name) for name in recipe} == recipe


def test_config_survives_json():
    config = Config(**NET, model_arguments=("a=1",), watch=("updates",), seed=2**63 - 1)
    loaded = json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))
    assert Config(**from_json(Config, loaded, "")) == config


def test_a_config_of_an_earlier_version():
    """`data` was `data_dir`, and MNIST the empty text."""
    assert renamed({"data_dir": "", "seed": 3}) == {"data": "mnist", "seed": 3}
    assert renamed({"data_dir": "/a"}) == {"data": "/a"}
    assert renamed({"data_dir": [1]}) == {"data": [1]}  # for the check to refuse
    for other in ({"data": "x"}, {"data": "x", "data_dir": "y"}, {}, None, 3):
        assert renamed(other) == other


# The name of a run.

NET = {"model": "net.py:Net"}


def varied(field):
    """A config that differs from the default in one field, and where it must in the model."""
    return Config(**(NET if field.name == "model_arguments" else {}) | {field.name: other(field)})


VARIED = [Config(), *map(varied, dataclasses.fields(Config))]


def awkward():
    """Configs whose names are near each other, long, or full of signs."""
    yield Config(learning_rate=0.1)
    yield Config(learning_rate=0.1 + 1e-9)  # both are 0.1 in six digits
    yield Config(learning_rate=math.nextafter(0.1, 1))
    yield Config(learning_rate=1e-300)
    yield Config(learning_rate=0.0)
    yield Config(n_hidden_1=12, n_hidden_2=8256)
    yield Config(n_hidden_1=128, n_hidden_2=2256)
    yield Config(adam_beta_1=0.5, rmsprop_rho=0.6)
    yield Config(adam_beta_1=0.6, rmsprop_rho=0.5)
    yield from (Config(watch=()), Config(watch=WATCHABLE), Config(watch=WATCHABLE[1:]))
    for folder in ("/", "/a/b", "/a_b", "/a b", "/a/../c", "/x,seed=1", "/täst", "/t\u0301st"):
        yield Config(data=folder)
    yield from (Config(data=f"/{'d' * n}") for n in (60, 200, 250, 251))
    yield from (Config(data=f"/{parent}/same") for parent in "pq")
    yield from (Config(data=name) for name in ("Mnist", "mlp", "x.npz", "x.py:make", "x.py:Make"))
    yield from (Config(loss=f"{place}:loss") for place in ("a.py", "A.py", "b/a.py", "a,b.py"))
    changed = {f.name: other(f) for f in dataclasses.fields(Config)}
    own = [f.name for f in dataclasses.fields(Config) if f.metadata.get("of")]
    for seed in (0, 1, 10, 2**63 - 1):
        last = {"seed": seed, "data": "/" + "ü" * 120}
        yield Config(**changed | last | {"model": "mlp", "model_arguments": ()})
        yield Config(**{k: v for k, v in changed.items() if k not in own} | last)


def models():
    """Configs of other models, some nearly the same."""
    for place in ("net.py", "Net.py", "a/net.py", "täg ,.py", "/net.py", "sgd,lr=0.01.py"):
        yield from (Config(model=f"{place}:{name}") for name in ("Net", "net", "mlp", "convnet"))
    yield from (Config(model=name) for name in ("convnet", "transformer"))
    texts = ["a b", "a_b", "A b", "a-b", "", "true", "True", "ü", "a=b", "x" * 300, "x" * 301, "\n"]
    yield from (Config(**NET, model_arguments=(f"a={text}",)) for text in texts)
    yield Config(**NET, model_arguments=("A=",))
    yield Config(**NET, model_arguments=("a=1", "b=2"))
    yield Config(**NET, model_arguments=("batch_size=1",))
    yield Config(**NET, batch_size=1)
    yield Config(**NET, loss="softmax_cross_entropy")
    yield Config(**NET, reduction="mean")
    yield Config(**NET, loss="softmax_cross_entropy", reduction="mean")


def test_names_are_distinct():
    configs = [*VARIED, *awkward(), *models()]
    configs = list(dict.fromkeys(configs))
    assert len(configs) > 100
    names = [config.run_name for config in configs]
    assert len({name.casefold() for name in names}) == len(names)  # also where case is folded


def test_names_are_fit_for_a_file_system():
    for config in [*VARIED, *awkward(), *models()]:
        name = config.run_name
        assert len(name.encode()) <= 255
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*", name), name


def test_names_are_stable(tmp_path, monkeypatch):
    """A name finds a run again, so it must not move with the code, the process or the folder."""
    assert Config().run_name == "sgd,lr=0.01,128x256,seed=0"
    assert (
        Config(optimizer="adagrad", n_hidden_2=64, watch=(), reduction="mean", seed=3).run_name
        == "adagrad,lr=0.01,128x64,reduction=mean,watch=none,seed=3"
    )
    absolute = Config(data=str(tmp_path / "set")).run_name
    net = Config(model=f"{tmp_path}/net.py:Net", loss=f"{tmp_path}/net.py:loss").run_name
    monkeypatch.chdir(tmp_path)
    assert Config(data="set").run_name == absolute
    assert Config(data="./set/").run_name == absolute
    assert Config(model="net.py:Net", loss="./net.py:loss").run_name == net


def test_the_name_holds_the_model_and_what_is_not_its_default():
    rest = {"loss": "softmax_cross_entropy", "reduction": "mean"}
    name = Config(**NET, **rest, model_arguments=("channels=8", "kernel=3x3")).run_name
    assert re.fullmatch(r"Net-[0-9a-f]{6},channels=8,kernel=3x3,sgd,lr=0.01,seed=0", name)
    assert Config(model="convnet", **rest).run_name == "convnet,sgd,lr=0.01,seed=0"
    summed = Config(model="convnet", loss="softmax_cross_entropy").run_name
    assert summed == "convnet,sgd,lr=0.01,reduction=sum,seed=0"


def test_hparams():
    """The README's columns; of another model its arguments too, numbers as numbers."""
    readme = {"n_hidden_1": 128, "n_hidden_2": 256, "optimizer": "sgd", "learning_rate": 0.01}
    assert Config().hparams == readme | {"model": "mlp", "seed": 0}
    given = ("a=8", "b=0.5", "c=3x3", "d=true", "e=NaN", "f=1e999", f"g={'9' * 400}", "h={}")
    rest = {"loss": "softmax_cross_entropy", "reduction": "mean"}
    found = Config(model="/x/net.py:Net", model_arguments=given, **rest).hparams
    texts = {f"model.{key}": text for key, _, text in (one.partition("=") for one in given[2:])}
    assert found == {
        "model": " ".join(["net.py:Net", *given]),
        "model.a": 8,
        "model.b": 0.5,
        **texts,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": ""}, "--data="),
        (NET | {"model_arguments": ("b=1", "a=1")}, "order"),
        (NET | {"model_arguments": ("a=1", "a=1")}, "each once"),
        (NET | {"model_arguments": ("a",)}, "KEY=VALUE"),
        (NET | {"model_arguments": ("=1",)}, "KEY=VALUE"),
        (NET | {"model_arguments": ("a b=1",)}, "KEY=VALUE"),
        (NET | {"n_hidden_1": 3}, "--n_hidden_1"),
        ({"model": "convnet", "activation": "relu"}, "--activation"),
        ({"model_arguments": ("units=3",)}, "--model.units"),
    ],
)
def test_fields_that_do_not_go_together(fields, words):
    with pytest.raises(LabError, match=re.escape(words)) as error:
        Config(**fields)
    assert len(str(error.value).splitlines()) == 1


# The fingerprint.


def test_fingerprints_change_with_every_field_but_the_place_of_the_data():
    plain = Config().fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", plain)
    for config, field in zip(VARIED[1:], dataclasses.fields(Config), strict=True):
        assert (config.fingerprint() == plain) == (field.name == "data"), field.name
    changed = [config.fingerprint() for config in VARIED if config.data == "mnist"]
    assert len(set(changed)) == len(changed)


def test_fingerprints_hold_the_name_of_what_a_file_has_but_not_its_place():
    here, there = "net.py", "/a/b c/other.py"
    for flag in ("model", "loss", "data"):
        same = {Config(**{flag: f"{place}:one"}).fingerprint() for place in (here, there)}
        assert len(same) == 1
        assert Config(**{flag: f"{here}:two"}).fingerprint() not in same
    assert Config(model="x.py:convnet").fingerprint() != Config(model="convnet").fingerprint()


def test_fingerprints_change_with_circumstances():
    around = {"data": "abc", "replicas": 1, "tensorflow": "2.21.0"}
    prints = [
        Config().fingerprint(**around),
        Config().fingerprint(),
        Config().fingerprint(**around | {"data": "abd"}),
        Config().fingerprint(**around | {"replicas": 2}),
        Config().fingerprint(**around | {"tensorflow": "2.21.1"}),
        Config().fingerprint(**around, xla=True),
    ]
    assert len(set(prints)) == len(prints)
    assert Config().fingerprint(**dict(reversed(around.items()))) == prints[0]


def test_a_field_that_came_later_changes_no_fingerprint():
    """Runs of before can be resumed: the digits are those of the config without the field."""
    fields = placeless(dataclasses.asdict(Config()))
    assert fields.pop("microbatches") == 1
    text = json.dumps([NUMERICS, fields, {"data": "abc"}], sort_keys=True)
    assert Config().fingerprint(data="abc") == hashlib.sha256(text.encode()).hexdigest()


def test_fingerprints_of_equal_configs_are_equal():
    """1 and 1.0 are one learning rate, whether a flag or a program gave it."""
    assert Config(learning_rate=1) == Config(learning_rate=1.0)
    assert Config(learning_rate=1).fingerprint() == Config(learning_rate=1.0).fingerprint()


def test_the_fingerprint_changes_with_the_numerics(monkeypatch):
    plain = Config().fingerprint()
    monkeypatch.setattr("lab.settings.config.NUMERICS", -1)
    assert Config().fingerprint() != plain
