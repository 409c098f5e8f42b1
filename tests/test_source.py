"""Models, data and losses in files of one's own, as command lines: configs or error lines out, and
the file is never run."""

import dataclasses
import json
import re
import shlex

import pytest

from lab.errors import LabError
from lab.record.directory import RunDirectory
from lab.settings import command_line, source
from lab.settings.as_line import as_line
from lab.settings.config import Config

NET = """
raise SystemExit("this file was run")  # nothing of it may be

import nowhere

WIDTH = 64


class Net(nowhere.Module):
    def __init__(self, channels=16, units: int = 32, rate: float = 0, norm=True, act="relu",
                 kernel=(5, 5), depths: "tuple[int, ...]" = (), limit: float | None = None,
                 width: int = WIDTH, function=nowhere.relu, seed=0):
        super().__init__()

    def __call__(self, x):
        return x


class Sub(Net):
    pass


class Needs:
    def __init__(self, depth: int, *sizes, heads: "int" = 2, seed, **rest):
        pass


def make(channels=4, *, bias: bool = False, sizes: nowhere.Sequence[int] = [3]):
    return Net(channels)


def needs(channels):
    return Net(channels)


if nowhere:
    from elsewhere import Imported
else:
    def loss(y, out):
        return 0.0

Assigned, (other, _) = make, (1, 2)
"""
RECIPE = """
RECIPE = {
    "optimizer": "adam",
    "learning_rate": 1,
    "watch": ["norms"],
    "loss": "losses.py:loss",  # beside this file
    "data": "set.npz",
}

def make(units=3): ...
"""
PLAIN = {"reduction": "mean", "loss": "softmax_cross_entropy"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "losses.py").write_text("def loss(y, out): ...\n")
    return tmp_path


def configs(*words):
    return command_line.parse(["train", *words])[0]


def one(*words):
    (config,) = configs(*words)
    return config


def failure(*words):
    with pytest.raises(LabError) as error:
        configs(*words)
    text = str(error.value)
    assert text.strip() and len(text.splitlines()) == 1, text
    return text


def net(*arguments, **fields):
    return Config(**PLAIN | {"model": "net.py:Net", "model_arguments": arguments} | fields)


def test_a_model_without_a_recipe():
    assert one("--model=net.py:Net") == net()
    assert one("--model=net.py:Net", "--loss=clipped_cross_entropy", "--reduction=sum") == Config(
        model="net.py:Net"
    )


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("channels=8", "channels=8", 8),
        ("channels=08", "channels=8", 8),
        ("channels=-3", "channels=-3", -3),
        ("rate=1", "rate=1.0", 1.0),
        ("rate=1e-3", "rate=0.001", 0.001),
        ("norm=False", "norm=false", False),
        ("norm=0", "norm=false", False),
        ("act=tanh", "act=tanh", "tanh"),
        ("act=", "act=", ""),
        ("act= a=b ü\n", "act= a=b ü\n", " a=b ü\n"),
        ("act=none", "act=none", "none"),
        ("kernel=3x03", "kernel=3x3", (3, 3)),
        ("kernel=", "kernel=", ()),
        ("kernel=7", "kernel=7", (7,)),
        ("depths=1x2x3", "depths=1x2x3", (1, 2, 3)),
        ("limit=2", "limit=2.0", 2.0),
        ("width=64", "width=64", 64),  # no literal: it is not known to be the default
    ],
)
def test_a_value_there_and_back(flag, text, value):
    """What stands for one value has one text, and the text gives the value."""
    config = one("--model=net.py:Net", f"--model.{flag}")
    assert config == net(text)
    name = text.partition("=")[0]
    found = source.arguments(config)
    assert found == {name: value} and type(found[name]) is type(value)


@pytest.mark.parametrize(
    "flag", ["channels=16", "rate=0.0", "norm=1", "act=relu", "kernel=5x5", "depths=", "limit=none"]
)
def test_a_default_that_is_given_is_left_out(flag):
    assert one("--model=net.py:Net", f"--model.{flag}") == net()
    assert source.arguments(net()) == {}


def test_ways_to_give_arguments(folder):
    model = "--model=net.py:Net"
    wanted = net("channels=3", "units=4")
    assert one("--model.units=4", "--model.channels=3", model) == wanted
    assert one(model, "--model.units", "4", "-model.channels=3") == wanted
    assert one(model, "--model.units=5", "--model.units=4", "--model.channels=3") == wanted
    (folder / "some flags").write_text("--model.units=4\n--model=net.py:Net\n")
    assert one("--flagfile=some flags", "--model.channels=3") == wanted


def test_lists_are_grids():
    found = configs("--model=net.py:Net", "--model.units=4,32", "--model.channels=8,16,8")
    assert found == [
        net("channels=8", "units=4"),
        net("channels=8"),
        net("units=4"),
        net(),
    ]
    found = configs("--model=net.py:Net", "--model.norm=true,false", "--learning_rate=1,2")
    assert found == [
        net(*arguments, learning_rate=rate)
        for arguments in ((), ("norm=false",))
        for rate in (1, 2)
    ]


def test_several_models_each_with_its_defaults():
    found = configs("--model=mlp,net.py:make,recipe.py:make", "--seeds=2")
    assert [config.seed for config in found] == [0, 0, 0, 1, 1, 1]
    assert found[0] == Config()
    assert found[1] == net(model="net.py:make")
    assert found[2] == one("--model=recipe.py:make")


def test_two_references_to_one_file_are_one_model(folder):
    found = configs(f"--model=net.py:Net,./net.py:Net,{folder}/net.py:Net,net.py:Sub")
    assert found == [net(), net(model="net.py:Sub")]


def test_a_recipe():
    recipe = {
        "model": "recipe.py:make",
        "reduction": "mean",
        "optimizer": "adam",
        "learning_rate": 1.0,
        "watch": ("norms",),
        "loss": "losses.py:loss",
        "data": "set.npz",
    }
    assert one("--model=recipe.py:make") == Config(**recipe)
    given = one("--model=recipe.py:make", "--optimizer=sgd", "--model.units=4", "--watch=")
    assert given == Config(
        **recipe | {"optimizer": "sgd", "watch": (), "model_arguments": ("units=4",)}
    )


def test_files_that_a_recipe_names_lie_beside_it(folder, monkeypatch):
    (folder / "deep").mkdir()
    monkeypatch.chdir(folder / "deep")
    config = one("--model=../recipe.py:make")
    assert (config.loss, config.data) == ("../losses.py:loss", "../set.npz")


def test_grid_files(folder):
    (folder / "g.flags").write_text(
        "--model=net.py:Net --model.channels=8,4  # two\n"
        "--optimizer=adagrad\n"
        "--model='net.py:make' --model.bias=true\n"
    )
    assert configs("--grid=g.flags", "--batch_size=7") == [
        net("channels=8", batch_size=7),
        net("channels=4", batch_size=7),
        Config(optimizer="adagrad", batch_size=7),
        net("bias=true", model="net.py:make", batch_size=7),
    ]
    (folder / "g.flags").write_text("--seed=1\n--model=net.py:Net --model.chanels=8\n")
    message = failure("--grid=g.flags")
    assert message.startswith("g.flags:2: ") and "--model.channels" in message


@pytest.mark.parametrize("name", ["a b", "a,b", "./mlp,x", "tä g", "a:b.py", "=", "'", "#", "--x"])
def test_hostile_paths(folder, name):
    (folder / name).mkdir()
    (folder / name / "net.py").write_text(NET)
    reference = f"{name}/net.py:Net"
    assert one(f"--model={reference}") == net(model=reference)
    found = configs(f"--model=mlp,{reference},net.py:Net", f"--loss={reference},net.py:loss")
    assert [(c.model, c.loss) for c in found if c.model != "mlp"] == [
        (model, loss) for model in (reference, "net.py:Net") for loss in (reference, "net.py:loss")
    ]
    assert one(f"--data={reference}").data == reference
    (folder / "g.flags").write_text(f"{shlex.quote(f'--model={reference}')} --model.channels=1\n")
    assert one("--grid=g.flags") == net("channels=1", model=reference)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model=net.py:Nett"], ["net.py has no Nett", "Net", "Needs", "make", "loss"]),
        (["--model=absent.py:Net"], ["absent.py", "No such file"]),
        (["--model=.py:Net"], [".py", "No such file"]),
        (["--model=net.py"], ["--model=net.py", "FILE.py:NAME"]),
        (["--model=Net"], ["--model=Net", "mlp, convnet, transformer"]),
        (["--model="], ["--model=", "FILE.py:NAME"]),
        (["--model=net.py:Net,"], ["--model=", "FILE.py:NAME"]),
        (["--model=net.py:needs"], ["'channels'", "int, float, bool, str"]),
        (["--model=net.py:Needs"], ["--model.depth", "an integer"]),
        (["--model=net.py:Net", "--model.chanels=3"], ["did you mean --model.channels?"]),
        (["--model=net.py:Net", "--model.channels"], ["--model.channels"]),
        (["--model=net.py:Net", "--nomodel.norm"], ["model.norm"]),
        (["--model=net.py:Net", "--model.zzz=3"], ["--model.zzz", "--model.units"]),
        (["--model=net.py:Net", "--model.seed=1"], ["--model.seed", "--seed"]),
        (["--model=net.py:Net", "--model.self=1"], ["--model.self"]),
        (["--model=net.py:Net", "--model.=3"], ["--model.: ", "--model.channels"]),
        (["--model=net.py:Net", "--model.a b=3"], ["space"]),
        (["--model=net.py:Net", "--model_arguments=a=3"], ["model_arguments"]),
        (["--model=net.py:Net", "--model.channels=x"], ["--model.channels=x: must be an integer"]),
        (["--model=net.py:Net", "--model.channels=1.5"], ["must be an integer"]),
        (["--model=net.py:Net", "--model.channels="], ["must be an integer"]),
        (["--model=net.py:Net", "--model.channels=8,"], ["must be an integer"]),
        (["--model=net.py:Net", f"--model.channels={2**63}"], ["must be an integer"]),
        (["--model=net.py:Net", "--model.channels=a\nb"], ["--model.channels=a b"]),
        (["--model=net.py:Net", "--model.rate=nan"], ["must be a number"]),
        (["--model=net.py:Net", "--model.rate=none"], ["must be a number"]),
        (["--model=net.py:Net", "--model.limit=x"], ["must be a number, or none"]),
        (["--model=net.py:Net", "--model.norm=maybe"], ["must be true or false"]),
        (["--model=net.py:Net", "--model.kernel=3x"], ["must be integers", "8x16"]),
        (["--model=net.py:Net", "--model.function=f"], ["--model.function=f", "annotated"]),
        (["--model=net.py:Imported", "--model.x=1"], ["net.py:Imported has no parameters"]),
        (["--model.units=3"], ["--model.units", "mlp has --n_hidden_1"]),
        (["--model=mlp,net.py:Net", "--model.units=3"], ["--model.units", "mlp has"]),
        (
            ["--model=net.py:Net", "--n_hidden_1=128"],
            ["--n_hidden_1 belongs to --model=mlp", "--model=net.py:Net has --model.channels"],
        ),
        (["--model=net.py:Net", "--activation=relu"], ["--activation belongs to --model=mlp"]),
        (["--loss=net.py:lose"], ["--loss=net.py:lose", "net.py has no lose", "loss"]),
        (["--loss=absent.py:loss"], ["--loss=absent.py:loss", "No such file"]),
        (["--loss=loss.py"], ["--loss=loss.py", "FILE.py:NAME"]),
        (["--data=net.py:date"], ["--data=net.py:date", "net.py has no date"]),
        (["--data=absent.py:data"], ["--data=absent.py:data", "No such file"]),
        (["--data="], ["--data=", "mnist", "FILE.npz"]),
    ],
)
def test_what_does_not_fit(words, parts):
    message = failure(*words)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("class Net\n", ["line 1", "not Python"]),
        ("\n\nclass Net:\n  x = \n", ["line 4", "not Python"]),
        ("\0", ["not Python"]),
        ("x = " + "(" * 1000, ["not Python"]),
        ("", ["has no Net", "no class or function"]),
        ("_hidden = Net = 3\nNet()", None),
        ("from elsewhere import *", None),
        ("import Net", None),
        ("try:\n  import x as Net\nexcept ImportError:\n  Net = None", None),
        ("class Net: ...\nRECIPE = dict(seed=3)", ["line 2", "RECIPE", "literals"]),
        ("class Net: ...\nRECIPE = [3]", ["line 2", "RECIPE", "literals"]),
        ("class Net: ...\nRECIPE = {'optimiser': 'sgd'}", ["RECIPE", "'optimiser'", "'optimizer'"]),
        ("class Net: ...\nRECIPE = {3: 'sgd'}", ["RECIPE", "3"]),
        ("class Net: ...\nRECIPE = {'seed': 3}", ["RECIPE", "'seed'"]),
        ("class Net: ...\nRECIPE = {'model': 'mlp'}", ["RECIPE", "'model'"]),
        ("class Net: ...\nRECIPE = {'n_hidden_1': 3}", ["RECIPE", "'n_hidden_1'"]),
        ("class Net: ...\nRECIPE = {'optimizer': 'adm'}", ["optimizer is 'adm'", "adagrad"]),
        ("class Net: ...\nRECIPE = {'batch_size': 0}", ["batch_size is 0", "at least 1"]),
        ("class Net: ...\nRECIPE = {'loss': 'absent.py:x'}", ["--loss=absent.py:x", "No such"]),
        ("class Net: ...\nRECIPE: dict = {'batch_size': 3}", None),
        ("class Net: ...\nRECIPE: dict", ["RECIPE", "literals"]),
        ("class Net(Net): ...", None),
        ("class A(B): ...\nclass B(A): ...\nclass Net(A): ...", None),
        ("# coding: latin-1\nclass Net: 'caf\xe9'", None),
    ],
)
def test_files(folder, text, parts):
    (folder / "file.py").write_bytes(text.encode("latin-1"))
    if parts is None:
        assert one("--model=file.py:Net").model == "file.py:Net"
        return
    message = failure("--model=file.py:Net")
    assert "file.py" in message or "absent.py" in message
    for part in parts:
        assert part in message


def test_a_folder_is_no_file(folder):
    (folder / "set.py").mkdir()
    assert "set.py" in failure("--model=set.py:Net")


def test_constructors_of_bases_and_functions():
    assert one("--model=net.py:Sub", "--model.units=3") == net("units=3", model="net.py:Sub")
    made = one("--model=net.py:make", "--model.sizes=3", "--model.bias=true")
    assert made == net("bias=true", model="net.py:make")
    config = one("--model=net.py:Needs", "--model.depth=3", "--model.heads=4")
    assert source.arguments(config) == {"depth": 3, "heads": 4}


def test_arguments_that_the_file_does_not_take_any_more(folder):
    config = one("--model=net.py:Net", "--model.units=3")
    (folder / "net.py").write_text("class Net:\n    def __init__(self, unit=3): ...\n")
    with pytest.raises(LabError, match=r"--model\.units: did you mean --model\.unit\?"):
        source.arguments(config)


def test_what_is_read_of_a_file(folder):
    found = source.read("model", "recipe.py:make")
    assert (found.text, found.path, found.name) == (
        "recipe.py:make",
        str(folder / "recipe.py"),
        "make",
    )
    assert [parameter.name for parameter in found.parameters] == ["units"]
    assert found.defaults == dataclasses.asdict(one("--model=recipe.py:make"))
    before = found.digest
    assert len(before) == 64 and before == source.read("model", "./recipe.py:make").digest
    (folder / "recipe.py").write_text(RECIPE + "\n")
    assert source.read("model", "recipe.py:make").digest != before


def help_text(capsys, *words):
    with pytest.raises(SystemExit) as end:
        configs("--help", *words)
    assert not end.value.code
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_help_shows_the_parameters_and_the_defaults_of_a_model(capsys):
    text = help_text(capsys, "--model=net.py:Net")
    for row in (
        "--model=net.py:Net ",
        "--model.channels=16 an integer",
        "--model.rate=0.0 a number",
        "--model.norm=true true or false",
        "--model.kernel=5x5 integers",
        "--model.limit=none a number, or none",
        "--model.width=WIDTH an integer",
        "--reduction=mean ",
        "--loss=softmax_cross_entropy ",
    ):
        assert row in " ".join(text.split()), row
    for other in ("--n_hidden_1", "--activation", "--model.seed", "--model.function", "KEY"):
        assert other not in text
    text = " ".join(help_text(capsys, "--model=recipe.py:make").split())
    assert "--optimizer=adam " in text and "--learning_rate=1.0 " in text
    assert "--model.depth=... an integer, required" in " ".join(
        help_text(capsys, "--model=net.py:Needs").split()
    )
    assert "No such file" in failure("--help", "--model=absent.py:Net")


def test_help_says_of_a_parameter_what_its_docstring_does(capsys, tmp_path):
    lines = [
        *("def make(units: int, heads=(1, 2), other=1.5):", '    """A network.', ""),
        *("    Args:", "      units: of each layer; 0 for", "        none: no layer.", ""),
        *("      heads (tuple): how many.", "", "    Returns:", "      other: a model.", '    """'),
    ]
    (tmp_path / "told.py").write_text("\n".join(lines))
    text = " ".join(help_text(capsys, f"--model={tmp_path}/told.py:make").split())
    assert "--model.units=... of each layer; 0 for none: no layer (an integer, required)" in text
    assert "--model.heads=1x2 how many (integers joined by x, as in 8x16)" in text
    assert "--model.other=1.5 a number" in text
    assert "0 for images (an integer)" in " ".join(help_text(capsys, "--model=transformer").split())


UNUSUAL = [
    *("--learning_rate=0.00012345678901", "--warmup_steps=7", "--reduction=sum", "--xla=off"),
    *("--sgd_momentum=0.9", "--sgd_nesterov", "--epsilon=1e-12", "--epsilon_inside_root"),
    *("--adam_beta_1=0.8", "--threads=1", "--microbatches=3", "--shuffle_labels", "--seed=12"),
    *("--watch=", "--nodeterministic", "--data=a b/c,d.npz", "--clip_norm=1e-05"),
]
MLP = ["--init_stddev=0.5", "--initializer=glorot", "--activation=relu", "--n_hidden_2=64"]


@pytest.mark.parametrize("unusual", [[], UNUSUAL], ids=["few", "many"])
@pytest.mark.parametrize(
    "flags",
    [
        [],
        MLP,
        ["--model=convnet", "--model.dropout=0", "--model.batch_norm=1", "--optimizer=sgd"],
        ["--model=transformer", "--model.width=32", "--learning_rate_decay=none"],
        ["--model=net.py:Net", "--model.kernel=3x3", "--model.act=a 'b'", "--loss=net.py:loss"],
        ["--model=recipe.py:make", "--model.units=4", "--optimizer=sgd", "--learning_rate=0.01"],
    ],
    ids=["recipe", "mlp", "convnet", "transformer", "file", "RECIPE"],
)
def test_a_config_as_a_line_is_the_config_again(flags, unusual):
    config = one(*flags, *unusual)
    stored = json.loads(json.dumps(config.own))
    assert one(*shlex.split(as_line(stored))[1:]) == config
    line = as_line(stored, batch_size=5, epsilon=None)
    changed = dataclasses.replace(config, batch_size=5, epsilon=Config.epsilon)
    assert one(*shlex.split(line)[1:]) == changed and line.endswith(" --batch_size=5")
    assert as_line(json.loads(json.dumps(Config().own))) == "bin/train"


def test_a_line_leaves_nothing_to_a_recipe_that_is_not_at_hand(folder, monkeypatch):
    config = one("--model=recipe.py:make", "--optimizer=sgd", "--learning_rate=0.01")
    monkeypatch.chdir("/")
    line = as_line(json.loads(json.dumps(config.own)))
    monkeypatch.chdir(folder)
    assert one(*shlex.split(line)[1:]) == config


def test_a_moved_file_is_the_same_run_and_another_name_in_it_is_not(tmp_path):
    def take(config, digest):
        """Makes the run directory, or looks into the one that is there, as training does."""
        facts = {"data": digest, "model_source": "c0de"}
        identity = {"config": dataclasses.asdict(config), **facts}
        RunDirectory(str(tmp_path / "run"), identity, config.fingerprint(**facts)).close()

    take(net(data="here"), "d1")
    take(net(data="there", model="moved/net.py:Net"), "d1")
    with pytest.raises(LabError) as error:
        take(net(data="here", model="moved/net.py:Sub", loss="x/net.py:loss"), "d2")
    told = re.findall(r"(\w+) was (\S+), is ([^\s;)]+)", str(error.value))
    assert told == [
        ("data", "d1", "d2"),
        ("loss", "softmax_cross_entropy", "FILE.py:loss"),
        ("model", "FILE.py:Net", "FILE.py:Sub"),
    ]


def test_of_another_run_only_the_fields_of_its_model_are_told(tmp_path):
    """Runs of older versions have all fields, whatever the model."""
    earlier, now = Config(model="convnet"), Config(model="convnet", batch_size=7)
    RunDirectory(str(tmp_path / "run"), {"config": dataclasses.asdict(earlier)}, "e").close()
    with pytest.raises(LabError, match=r"another run \(batch_size was 256, is 7\): "):
        RunDirectory(str(tmp_path / "run"), {"config": now.own}, "n")
