"""Other networks than the perceptron, with a state and with randomness: a run that was killed goes
on to the same bits, and so does one that lab.train was asked to stop."""

import os
import random
import signal

import forks
import numpy as np
import programs
import pytest
from conftest import learnable

KERAS = os.path.join(programs.CHILDREN, "keras_network.py")
KINDS = {
    "convnet": ["--model=convnet", "--model.batch_norm=true", "--model.channels=2"],
    "transformer": ["--model=transformer", "--model.dropout=0.2", "--model.width=8"],
    "keras": [f"--model={KERAS}:functional", "--optimizer=adam", "--learning_rate=0.01"],
}
KINDS["convnet"] += ["--model.units=8", "--model.dropout=0.25"]
KINDS["transformer"] += ["--model.heads=2", "--model.depth=1"]
# What each has in its checkpoints beside weights and slots.
STATE = {
    "convnet": {f"norm{i}/{name}" for i in (1, 2) for name in ("mean", "variance")},
    "transformer": set(),
    "keras": {
        *("norm/moving_mean", "norm/moving_variance"),
        *(f"seed_generator{suffix}/seed_generator_state" for suffix in ("", "_1", "_2")),
    },
}
SHORT = ["--training_steps=40", "--checkpoint_every=8", "--steps_per_loop=4", "--display_step=10"]
SHORT += ["--batch_size=16", "--seed=9"]
LONG = ["--training_steps=200", "--checkpoint_every=10", "--display_step=50"]
LONG += ["--steps_per_loop=4", "--batch_size=16", "--seed=9"]


@pytest.fixture(scope="module")
def images():
    """Images of 28 x 28 pixels of ten classes that can be learnt: 120 and 40."""
    return learnable(3, 10, (28, 28), 60, 120, 40)


@pytest.fixture(scope="module")
def small(tmp_path_factory, images):
    """The program on them."""
    folder = tmp_path_factory.mktemp("models")
    names = ("x", "y", "x_test", "y_test")
    np.savez(folder / "small.npz", **dict(zip(names, images, strict=True)))
    return forks.Program(folder / "small.npz", folder / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_once_it_goes_on_to_the_same_bits(small, kind):
    flags = [*KINDS[kind], *SHORT]
    whole, directory = small.undisturbed(flags), small.new()
    # Else the comparison would compare nothing: the state moves from checkpoint to checkpoint.
    seen = [forks.tensors(path) for path in forks.checkpoints(whole).values()]
    assert STATE[kind] <= seen[0].keys()
    for name in STATE[kind]:
        assert len({tensors[name] for tensors in seen}) == len(seen), name
    outcome = small.train(directory, flags, kill_at=["saved", 4])
    assert outcome.status == -signal.SIGKILL
    forks.assert_nothing_is_lost(directory, whole)
    out = forks.assert_goes_on(small, directory, whole, flags)
    assert forks.resumed_after(out) == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "devices"), [("convnet", "cpu:2"), ("transformer", "cpu:1"), ("keras", "cpu:1")]
)
def test_killed_at_three_random_moments(small, kind, devices):
    flags = [*KINDS[kind], *LONG, f"--devices={devices}"]
    forks.assert_survives_kills(small, flags, 3, random.Random(kind))


# ------------------------------------------------------------------ lab.train, asked to stop

SCRIPT = os.path.join(programs.CHILDREN, "library_run.py")


@pytest.fixture(scope="module")
def script_run(tmp_path_factory):
    """The run of a script that nothing disturbed."""
    folder = tmp_path_factory.mktemp("script")
    outcome = forks.train(folder, script=SCRIPT)
    assert outcome.status == 0 and "completed at step 60, on return" in outcome.out, outcome
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_is_asked_to_stop(tmp_path, script_run, number):
    """The run is saved, Ctrl-C is raised again, SIGTERM ends the script as it ends any program; and
    the same script goes on to the same bits."""
    outcome = forks.train(tmp_path, int(number), script=SCRIPT)
    said = f"KeyboardInterrupt: {tmp_path}/run is saved; the same call resumes it"
    if number == signal.SIGINT:
        assert outcome.status == 0 and said in outcome.out, outcome
    else:
        assert outcome.status == 143 and "on return" not in outcome.out, outcome
    stopped = forks.result(tmp_path / "run")
    assert stopped["status"] == "interrupted" and 30 <= stopped["step"] < 40
    assert max(forks.checkpoints(tmp_path / "run")) == stopped["step"]
    outcome = forks.train(tmp_path, script=SCRIPT)
    assert outcome.status == 0 and "completed at step 60, on return" in outcome.out, outcome
    assert forks.resumed_after(outcome.out) == stopped["step"]
    forks.assert_same_run(tmp_path / "run", script_run)
