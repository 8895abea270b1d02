# One rule for every training: what a run needs follows from its row. Its resumable state lies in scratch/, declared to
# nobody, because declared outputs are deleted before a job starts. `exec`: signals and the job's end belong to the attempt,
# which hands them on to vexkd (workflow/scripts/job_attempt.py).


include: "train_functions.smk"


rule train:
    input:
        raw_data,
        infos=INFOS,
        paste=paste_of,
        maps=maps_of,
        backbone=backbone_of,
        start=start_of,
        teacher=teacher_of,
        settings=written(RUN.config),
    output:
        weights=TRAINING.weights,
        curve=TRAINING.curve,
        provenance=TRAINING.provenance,
    log:
        LOGS / "train/{run}-seed{seed}.log",
    benchmark:
        TRAINING.benchmark
    priority: 10
    threads: train_threads
    resources:
        attempt=attempt_number,
    params:
        attempt=ATTEMPT,
        vexkd=processes,
        options=train_options,
    shell:
        "exec {params.attempt} {resources.attempt} {log:q}"
        " {params.vexkd} train {wildcards.run:q} --seed {wildcards.seed:q} {params.options}"


rule predict:
    input:
        raw_data,
        infos=INFOS,
        weights=TRAINING.weights,
        settings=written(RUN.config, RUN.inference),
    output:
        TRAINING.folder / "predictions.{ending}",
    log:
        LOGS / "predict/{run}-seed{seed}.{ending}.log",
    benchmark:
        LOGS / "benchmarks/predict/{run}-seed{seed}.{ending}.tsv"
    threads: train_threads
    resources:
        attempt=attempt_number,
    params:
        attempt=ATTEMPT,
        vexkd=processes,
        options=predict_options,
    shell:
        "exec {params.attempt} {resources.attempt} {log:q}"
        " {params.vexkd} predict {wildcards.run:q} --seed {wildcards.seed:q} {params.options}"


rule evaluate:
    input:
        raw_data,
        labels=labels_of,
        predictions=predictions_of_every_seed,
        weights=of_every_seed("weights"),
        curves=of_every_seed("curve"),
        records=of_every_seed("provenance"),
        settings=written(RUN.config, RUN.inference),
    output:
        metrics=RUN.metrics,
        curve=RUN.curve,
        provenance=RUN.provenance,
        resamples=RUN.resamples,
    log:
        LOGS / "evaluate/{run}.log",
    benchmark:
        LOGS / "benchmarks/evaluate/{run}.tsv"
    shell:
        "vexkd evaluate {wildcards.run:q} > {log:q} 2>&1"
