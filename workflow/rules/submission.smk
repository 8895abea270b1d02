# nuScenes' test set, which lies beside the others without annotations: its predictions for the evaluation server. Nothing here
# belongs to `all`: `snakemake --profile slurm submission_RUN` asks for it by name. What is made stands in submissions/.


include: "submission_functions.smk"


SUBMISSION = EXPERIMENT.submission("{run}", "{seed}")


rule test_doctor:
    input:
        test_tables,
    output:
        EXPERIMENT.test_manifest,
    log:
        LOGS / "submissions/doctor.log",
    threads: CORES
    shell:
        "vexkd doctor --test --workers {threads} > {log:q} 2>&1"


rule test_infos:
    input:
        EXPERIMENT.test_manifest,
    output:
        EXPERIMENT.test_infos_files,
    log:
        LOGS / "submissions/infos.log",
    shell:
        "vexkd infos --test > {log:q} 2>&1"


rule test_predict:
    input:
        infos=EXPERIMENT.test_infos_files,
        weights=submitted_weights,
        settings=written(RUN.config, RUN.inference),
    output:
        SUBMISSION.predictions,
    log:
        LOGS / "submissions/predict-{run}-seed{seed}.log",
    threads: train_threads
    resources:
        attempt=attempt_number,
    params:
        attempt=ATTEMPT,
        vexkd=processes,
        options=predict_options,
    shell:
        "exec {params.attempt} {resources.attempt} {log:q} {params.vexkd} predict {wildcards.run:q}"
        " --seed {wildcards.seed:q} --split test {params.options}"


rule submission:
    input:
        infos=EXPERIMENT.test_infos_files,
        manifest=EXPERIMENT.test_manifest,
        weights=submitted_weights,
        predictions=SUBMISSION.predictions,
        settings=written(RUN.config, RUN.inference),
    output:
        zip=SUBMISSION.zip,
        note=SUBMISSION.note,
    log:
        LOGS / "submissions/{run}-seed{seed}.log",
    shell:
        "vexkd submission {wildcards.run:q} --seed {wildcards.seed:q} > {log:q} 2>&1"


for name in SETTINGS.runs:

    rule:
        name:
            f"submission_{name}"
        input:
            EXPERIMENT.submission(name, FIRST_SEED).zip,
        localrule: True
