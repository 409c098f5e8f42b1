"""What a run takes of the one before it in the same process."""

import forks
import pytest

from lab.processes.stop import Stop
from lab.settings.config import Config, Settings
from lab.step.loop import TrainLoop
from lab.training import trial
from lab.training.problem import problem_of
from lab.training.programs import Programs
from lab.training.progress import Reporter

FIELDS = {
    "optimizer": "adam",
    "batch_size": 20,
    "training_steps": 7,
    "display_step": 3,
}
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

    def run(name, programs, **fields):
        config = Config(data=str(idx_folder), **FIELDS | fields)
        settings = Settings(logdir=str(tmp_path / name), run_name="run", checkpoint_every=3)
        problem = problem_of(config)
        trial.run(config, settings, problem, Reporter(), Stop(), 0.0, programs=programs)
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


@pytest.mark.parametrize("fields", [{}, {"optimizer": "sgd", "learning_rate": 1e30}])
def test_another_seed_runs_the_same_programs_to_the_same_bits(train, compiled, fields):
    """Also after a run that NaN has ended."""
    shared = Programs()
    train("first", shared, seed=1, **fields)
    before = len(compiled)
    found = train("shared", shared, seed=2, **fields)
    assert len(compiled) == before or "learning_rate" in fields  # NaN: a loop that looks for it
    wanted = train("alone", Programs(), seed=2, **fields)
    forks.assert_same_record(forks.record(found), forks.record(wanted))
    assert forks.checkpoints(found).keys() == forks.checkpoints(wanted).keys()
    for step, path in forks.checkpoints(wanted).items():
        assert forks.tensors(forks.checkpoints(found)[step]) == forks.tensors(path), step
    assert forks.result(found) == forks.result(wanted)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"learning_rate": 0.1}, {"learning_rate": 0.2}),
        ({"shuffle_labels": True}, {"shuffle_labels": True, "seed": 1}),
        ({"model": "dropout"}, {"model": "dropout", "seed": 1}),
        ({"watch": ()}, {"watch": ("norms",)}),
    ],
)
def test_what_a_program_depends_on_is_compiled_again(train, compiled, tmp_path, first, second):
    (tmp_path / "net.py").write_text(DROPOUT)
    shared = Programs()
    for number, fields in enumerate((first, second)):
        if "model" in fields:
            fields = fields | {"model": f"{tmp_path}/net.py:Net"}
        train(str(number), shared, xla="off", **fields)
    assert len(compiled) == 2
