# Functions of the rules in submission.smk.


def test_tables(wildcards):
    """The tables of the test set; without one there is nothing to predict."""
    table = os.path.join(SETTINGS.root, TEST_VERSION, "sample.json")
    if not os.path.isfile(table):
        raise WorkflowError(
            f"{SETTINGS.root} holds no {TEST_VERSION}: put nuScenes' test set, tables and sensor files, beside {EXPERIMENT.version}."
        )
    return table


def submitted_weights(wildcards):
    """Those of a detector; the server scores nothing else."""
    if SETTINGS.run(wildcards.run).task == "segmentation":
        raise WorkflowError(
            f"{wildcards.run}: nuScenes' server scores detections, and this run segments maps; name a detector."
        )
    return EXPERIMENT.training(wildcards.run, wildcards.seed).weights
