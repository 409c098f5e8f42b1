"""What a run takes of the one before it in the same process."""

import signal
from unittest import mock

import forks
import numpy as np
import pytest

from lab.processes.stop import Stop
from lab.settings.config import Config, Settings
from lab.step.loop import TrainLoop
from lab.training import programs, trial
from lab.training.problem import problem_of
from lab.training.programs import Programs
from lab.training.progress import Reporter

FIELDS = {
    "optimizer": "adam",
    "batch_size": 20,
    "training_steps": 7,
    "display_step": 3,
}
SLOW = pytest.mark.slow
DROPOUT = """
import tensorflow as tf

from lab import layers


class Net(tf.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.dense = layers.Dense(12, 5, seed=(seed, 0))
        self.dropout = layers.Dropout(0.5)

    def __call__(self, x, training, seed):
        return self.dense(self.dropout(x, training, seed))
"""


@pytest.fixture
def train(idx_folder, tmp_path):
    """Trains a config under a name, with the programs of earlier runs; returns the directory."""

    def run(name, shared, devices="auto", stopped=False, **fields):
        config = Config(**{"data": str(idx_folder)} | FIELDS | fields)
        where = {"logdir": str(tmp_path / name), "run_name": "run", "devices": devices}
        settings, stop = Settings(**where, checkpoint_every=3), Stop()
        reporter = mock.Mock(Reporter)
        if stopped:
            reporter.advance.side_effect = lambda step: setattr(stop, "signal", signal.SIGINT)
        problem = problem_of(config)
        trial.run(config, settings, problem, reporter, stop, 0.0, programs=shared)
        return tmp_path / name / "run"

    return run


@pytest.fixture
def compiled(monkeypatch):
    """The loops that were made, in their order."""
    made, make = [], TrainLoop.__init__

    def noted(self, *arguments, **options):
        made.append(self)
        make(self, *arguments, **options)

    monkeypatch.setattr(TrainLoop, "__init__", noted)
    return made


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": "sgd", "learning_rate": 3e38, "xla": "off"},
        pytest.param({"watch": ("weights", "activations"), "xla": "off"}, marks=SLOW),
    ],
)
def test_another_seed_runs_the_same_programs_to_the_same_bits(train, compiled, fields):
    """Also after a run that NaN has ended."""
    shared = Programs()
    train("first", shared, seed=1, **fields)
    before = len(compiled)
    found = train("shared", shared, seed=2, **fields)
    looks_for_nan = "learning_rate" in fields  # by a loop of its own
    assert len(compiled) == before + looks_for_nan
    wanted = train("alone", Programs(), seed=2, **fields)
    forks.assert_same_bits(found, wanted)
    assert (forks.result(found)["status"] == "nonfinite") == looks_for_nan


@SLOW
def test_a_resumed_run_uses_the_programs_of_another(train, compiled):
    """On two devices; stopped after its first loop."""
    fields = {"xla": "off", "devices": "cpu:2", "training_steps": 9}
    wanted = train("alone", Programs(), seed=2, **fields)
    train("shared", Programs(), seed=2, stopped=True, **fields)
    shared = Programs()
    train("first", shared, seed=1, **fields)
    before = len(compiled)
    found = train("shared", shared, seed=2, **fields)
    assert len(compiled) == before
    forks.assert_same_run(found, wanted)


@pytest.mark.parametrize(
    ("first", "second", "loops"),
    [
        ({}, {"seed": 1}, 1),
        ({"learning_rate": 0.1}, {"learning_rate": 0.2}, 2),
        ({"shuffle_labels": True}, {"shuffle_labels": True, "seed": 1}, 2),
        pytest.param({"model": "dropout"}, {"model": "dropout", "seed": 1}, 2, marks=SLOW),
        pytest.param({"watch": ()}, {"watch": ("norms",)}, 2, marks=SLOW),
        pytest.param({}, {"data": "other", "seed": 1}, 2, marks=SLOW),
    ],
)
def test_what_decides_a_program(train, compiled, tmp_path, tiny, first, second, loops):
    (tmp_path / "net.py").write_text(DROPOUT)
    np.savez(tmp_path / "other.npz", x=tiny[0].reshape(103, 12), y=tiny[1])
    places = {"dropout": f"{tmp_path}/net.py:Net", "other": f"{tmp_path}/other.npz"}
    shared = Programs()
    for number, fields in enumerate((first, second)):
        given = {k: places.get(v, v) if k in ("model", "data") else v for k, v in fields.items()}
        train(str(number), shared, xla="off", **given)
    assert len(compiled) == loops


def test_a_large_model_is_not_kept(train, compiled, monkeypatch):
    monkeypatch.setattr(programs, "_LARGEST", 1000)
    shared = Programs()
    for seed in range(2):
        train(str(seed), shared, seed=seed, xla="off")
    assert len(compiled) == 2
