# One rule for every training: what a run needs follows from its row. Its resumable state lies in scratch/, declared to
# nobody, because declared outputs are deleted before a job starts. `exec`: signals and the job's end belong to the attempt,
# which hands them on to vexkd (workflow/scripts/attempt.py).


rule train:
    input:
        raw_data,
        infos=INFOS,
        paste=paste_of,
        maps=maps_of,
        backbone=backbone_of,
        start=start_of,
        teacher=teacher_of,
        config="results/runs/{run}/config.yaml",
    output:
        weights=WEIGHTS,
        curve="models/{run}/seed{seed}/curve.csv",
        provenance="models/{run}/seed{seed}/provenance.json",
    log:
        "logs/train/{run}-seed{seed}.log",
    benchmark:
        "models/{run}/seed{seed}/benchmark.tsv"
    priority: 10
    threads: train_threads
    resources:
        attempt=attempt_number,
    params:
        runs=FROZEN_RUNS,
        root=SETTINGS.root,
        attempt=ATTEMPT,
        vexkd=processes,
        more=train_options,
        pace=train_pace,
    shell:
        "exec {params.attempt} {resources.attempt} {log:q} {params.vexkd} train"
        " --config {params.runs:q}/{wildcards.run:q}/config.yaml"
        " --seed {wildcards.seed:q} --root {params.root:q} --infos artifacts/infos {params.more}"
        " --out models/{wildcards.run:q}/seed{wildcards.seed:q} --scratch scratch --keep scratch/finished {params.pace}"


rule predict:
    input:
        raw_data,
        infos=INFOS,
        weights=WEIGHTS,
        config="results/runs/{run}/config.yaml",
        inference="results/runs/{run}/inference.yaml",
    output:
        predictions="models/{run}/seed{seed}/predictions.{ending}",
    log:
        "logs/predict/{run}-seed{seed}.{ending}.log",
    benchmark:
        "logs/benchmarks/predict/{run}-seed{seed}.{ending}.tsv"
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
        " --root {params.root:q} --infos artifacts/infos --out {output.predictions:q} {params.more}"


rule evaluate:
    input:
        raw_data,
        labels=labels_of,
        predictions=predictions_of_every_seed,
        weights=of_every_seed("weights.safetensors"),
        curves=of_every_seed("curve.csv"),
        records=of_every_seed("provenance.json"),
        config="results/runs/{run}/config.yaml",
        inference="results/runs/{run}/inference.yaml",
    output:
        metrics="results/runs/{run}/metrics.json",
        curve="results/runs/{run}/curve.csv",
        provenance="results/runs/{run}/provenance.json",
        resamples="results/runs/{run}/resamples.json",
    log:
        "logs/evaluate/{run}.log",
    benchmark:
        "logs/benchmarks/evaluate/{run}.tsv"
    params:
        runs=FROZEN_RUNS,
        root=SETTINGS.root,
        seeds=seed_options,
    shell:
        "vexkd evaluate {wildcards.run:q} --models models --results results --settings {params.runs:q}"
        " --root {params.root:q} {params.seeds} > {log:q} 2>&1"
