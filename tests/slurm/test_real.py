"""The real `vexkd` on a real Slurm: disturbed at random, and one training on several nodes. See also trial.py."""

import random
import shutil

import pytest

from slurm.trial import PAIRED, Trial, differences, disturbed, make_checkout, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
WEIGHTS = f"models/{PAIRED}/seed0/weights.safetensors"
SPREAD = {"gpu": 2, "nodes": 2, "tasks": 2, "mpi": "srun", "slurm_extra": "'--gpus-per-node=1'"}


@pytest.fixture(scope="module")
def trial(cluster, tmp_path_factory) -> Trial:
    made = Trial(tmp_path_factory.mktemp("trial"), cluster)
    made.prepare()
    return made


def test_a_disturbed_experiment_equals_an_undisturbed_one(trial, capsys):
    done = disturbed(trial, "disturbed", random.Random(1), 60, print)
    assert done.total() > 2, capsys.readouterr().out
    assert not differences(trial.folder / "disturbed", trial.undisturbed)


@pytest.fixture
def spread(trial, cluster, tmp_path):
    """The undisturbed experiment without its run on two GPUs, which is to be trained on two nodes with one each."""
    make_checkout(tmp_path / "checkout", **SPREAD)
    again = Trial(tmp_path, cluster)
    experiment = tmp_path / "spread"
    shutil.copytree(trial.undisturbed, experiment, symlinks=True)
    shutil.rmtree(experiment / f"models/{PAIRED}")
    return again, experiment


def test_two_nodes_equal_two_processes_on_one(spread, trial):
    again, experiment = spread
    assert again.start(experiment, "--", WEIGHTS).wait(timeout=600) == 0, again.log(experiment).read_text()
    assert "srun --nodes 2" in again.log(experiment).read_text()
    assert not [line for line in differences(experiment, trial.undisturbed) if "alone" not in line]


def test_a_training_that_loses_one_of_its_nodes_resumes(spread, trial, cluster):
    """The processes on the other node end by themselves; what runs the training next goes on from the saved state."""
    again, experiment = spread
    main = again.start(experiment, "--", WEIGHTS)
    wait_for(lambda: list(experiment.glob(f"scratch/{PAIRED}/*/state.safetensors")), "no state was saved")
    cluster.kill_node("n2")
    try:
        wait_for(lambda: not again.processes(experiment), "processes are left")
    finally:
        cluster.start_node("n2")
    again.hurry(main)
    assert main.returncode == 0, again.log(experiment).read_text()
    assert "resumed at step" in (experiment / f"logs/train/{PAIRED}-seed0.log").read_text()
    assert not [line for line in differences(experiment, trial.undisturbed) if "alone" not in line]
