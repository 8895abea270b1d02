# nuScenes' test set, which lies beside the others without annotations: its predictions for the evaluation server. Nothing here
# belongs to `all`: `snakemake --profile slurm submission_RUN` asks for it by name. What is made stands in submissions/.


rule test_doctor:
    input:
        test_tables,
    output:
        TEST_MANIFEST,
    log:
        "logs/submissions/doctor.log",
    threads: CORES
    params:
        root=SETTINGS.root,
        version=TEST_VERSION,
        sensors=sensors_of_detectors,
    shell:
        "vexkd doctor --root {params.root:q} --version {params.version:q} --manifest {output:q} --splits test"
        " --sensors {params.sensors:q} --skip-unused --workers {threads} > {log:q} 2>&1"


rule test_infos:
    input:
        manifest=TEST_MANIFEST,
    output:
        TEST_INFOS,
    log:
        "logs/submissions/infos.log",
    params:
        root=SETTINGS.root,
        version=TEST_VERSION,
    shell:
        "vexkd infos --root {params.root:q} --version {params.version:q} --manifest {input.manifest:q}"
        " --out submissions/infos > {log:q} 2>&1"


rule test_predict:
    input:
        infos=TEST_INFOS,
        weights=submitted_weights,
        config="results/runs/{run}/config.yaml",
        inference="results/runs/{run}/inference.yaml",
    output:
        predictions="submissions/{run}/seed{seed}/predictions.json",
    log:
        "logs/submissions/predict-{run}-seed{seed}.log",
    threads: train_threads
    resources:
        attempt=attempt_number,
    params:
        runs=FROZEN_RUNS,
        root=SETTINGS.root,
        attempt=ATTEMPT,
        vexkd=processes,
        more=predict_options,
    shell:
        "exec {params.attempt} {resources.attempt} {log:q} {params.vexkd} predict --weights {input.weights:q}"
        " --config {params.runs:q}/{wildcards.run:q}/config.yaml --inference {params.runs:q}/{wildcards.run:q}/inference.yaml"
        " --root {params.root:q} --infos submissions/infos --split test --out {output.predictions:q} {params.more}"


rule submission:
    input:
        infos=TEST_INFOS,
        manifest=TEST_MANIFEST,
        weights=submitted_weights,
        predictions="submissions/{run}/seed{seed}/predictions.json",
        config="results/runs/{run}/config.yaml",
        inference="results/runs/{run}/inference.yaml",
    output:
        zip="submissions/{run}/seed{seed}/{run}-seed{seed}.zip",
        note="submissions/{run}/seed{seed}/{run}-seed{seed}.json",
    log:
        "logs/submissions/{run}-seed{seed}.log",
    params:
        runs=FROZEN_RUNS,
    shell:
        "vexkd submission {wildcards.run:q} --seed {wildcards.seed:q} --settings {params.runs:q} --predictions {input.predictions:q}"
        " --weights {input.weights:q} --infos submissions/infos --manifest {input.manifest:q} --out {output.zip:q} > {log:q} 2>&1"


for name in SETTINGS.runs:

    rule:
        name:
            f"submission_{name}"
        input:
            expand(
                "submissions/{run}/seed{seed}/{run}-seed{seed}.zip",
                run=name,
                seed=SETTINGS.seeds[0],
            ),
        localrule: True
