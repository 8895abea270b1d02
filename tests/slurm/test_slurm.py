"""The whole plan on a real Slurm, its trainings ended in every way a cluster ends them: the same bytes, nothing made twice."""

import pytest

from slurm.conftest import RUNS, made, unlike

pytestmark = pytest.mark.slow


@pytest.mark.sample
def test_a_cancelled_training_resumes(session, undisturbed):
    disturbed = session()
    main = disturbed.start()
    disturbed.wait_for_step("fusion-det", 8)
    number, _ = disturbed.job("fusion-det")
    disturbed.cluster.call("scancel", number)
    disturbed.finish(main)
    assert f"'{number}' failed, SLURM status is: 'CANCELLED'" in disturbed.output()
    assert not unlike(made(disturbed.place.folder), undisturbed)
    disturbed.assert_nothing_was_trained_twice(again=5)


def test_nothing_in_the_way(session, undisturbed):
    alone = session()
    alone.finish(alone.start())
    assert not unlike(made(alone.place.folder), undisturbed)
    alone.assert_nothing_was_trained_twice()
    alone.finish(alone.start())
    assert "Nothing to be done" in alone.output()


def test_a_lost_node(session, undisturbed):
    """Its jobs are killed without warning; Slurm queues them again, on the other node."""
    disturbed = session()
    main = disturbed.start()
    disturbed.wait_for_step("fusion-det", 8)
    _, node = disturbed.job("fusion-det")
    disturbed.cluster.kill_node(node)
    try:
        disturbed.finish(main)
    finally:
        disturbed.cluster.start_node(node)
        disturbed.wait_until(lambda: disturbed.cluster.states().count("idle") == 2, "the node does not come back")
    assert not unlike(made(disturbed.place.folder), undisturbed)
    disturbed.assert_nothing_was_trained_twice(again=10)


def test_a_preempted_training_resumes(session, undisturbed):
    """It is queued again by Slurm, under the same number; Snakemake need not notice."""
    disturbed = session()
    main = disturbed.start()
    disturbed.wait_for_step("fusion-det", 8)
    number, node = disturbed.job("fusion-det")
    disturbed.cluster.call("sbatch", "-p", "urgent", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 5")
    disturbed.finish(main)
    assert "Restarts=1" in disturbed.cluster.call("scontrol", "show", "job", number)
    assert not unlike(made(disturbed.place.folder), undisturbed)
    disturbed.assert_nothing_was_trained_twice(again=10)


def test_a_time_limit_shorter_than_the_training(session, undisturbed):
    """The training knows its deadline, saves before it, and the next attempt goes on."""
    disturbed = session()
    disturbed.profile(runtime=1)
    disturbed.place.environment["STAND_IN_STEP_SECONDS"] = "2.7"
    disturbed.finish(disturbed.start())
    assert "status 75" in disturbed.attempts("fusion-det")
    assert "TIMEOUT" not in disturbed.output()
    assert not unlike(made(disturbed.place.folder), undisturbed)
    disturbed.assert_nothing_was_trained_twice()


def test_a_killed_main_process(session, undisturbed):
    """Its jobs go on. The same command, unlocked, waits for the user to decide about them, and keeps what they made."""
    disturbed = session()
    disturbed.place.environment["STAND_IN_STEP_SECONDS"] = "2"
    main = disturbed.start()
    disturbed.wait_for_step("fusion-det", 3)
    main.kill()
    main.wait()
    assert "--unlock" in disturbed.fail()
    disturbed.finish(disturbed.start("--unlock"))
    number, _ = disturbed.job("fusion-det")
    refused = disturbed.fail()
    assert "Slurm still runs jobs that an earlier call queued here" in refused
    assert number in refused.partition("scancel")[2]
    disturbed.wait_until(lambda: not disturbed.cluster.call("squeue", "-h"), "the jobs do not end")
    disturbed.place.environment["STAND_IN_STEP_SECONDS"] = "0.1"
    disturbed.finish(disturbed.start())
    assert not unlike(made(disturbed.place.folder), undisturbed)
    disturbed.assert_nothing_was_trained_twice()


def test_bad_input_is_refused_once(session):
    """The retries of a refused training say the same at once; a new call tries again."""
    refused = session()
    refused.place.environment["STAND_IN_REFUSAL"] = "no such data set; make it."
    output = refused.fail("--retries", "1", "--", "models/fusion-det/seed0/weights.safetensors")
    assert output.count("vexkd: no such data set; make it.") >= 2
    assert refused.place.calls() == ["train fusion-det seed0"]
    del refused.place.environment["STAND_IN_REFUSAL"]
    refused.finish(refused.start("--", "models/fusion-det/seed0/weights.safetensors"))


def test_two_gpus_are_two_processes_on_one_node(session):
    both = session()
    both.profile(gpu=2)
    both.finish(both.start("--", "models/fusion-det/seed0/weights.safetensors"))
    assert both.place.calls() == ["train fusion-det seed0"] * 2


def test_dvc_repro_on_the_cluster(session, undisturbed):
    """DVC calls Snakemake with the profile that SNAKEMAKE_PROFILE names, its jobs do not; what DVC records is all there is."""
    by_dvc = session()
    by_dvc.hasten()
    place = by_dvc.place
    place.environment |= {"SNAKEMAKE_PROFILE": "slurm", "STAND_IN_STEP_SECONDS": "0"}
    place.run("dvc", "repro", "-q")
    assert not unlike(made(place.folder), undisturbed)
    jobs = by_dvc.cluster.call("squeue", "-h", "-t", "all", "-o", "%k|%Z").splitlines()
    assert sum(job.startswith("rule_train") and job.endswith(f"|{place.folder}") for job in jobs) == len(RUNS)
    assert "up to date" in place.run("dvc", "status")
    place.calls()
    place.set("inference.max_boxes", 7)
    place.run("dvc", "repro", "-q")
    assert not [call for call in place.calls() if call.startswith("train")]
    assert "up to date" in place.run("dvc", "status")
