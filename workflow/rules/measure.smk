# What is measured of a finished model besides its scores, for the rows that a figure asks for.


rule predict_without:
    input:
        raw_data,
        infos=INFOS,
        weights=WEIGHTS,
        config="results/runs/{run}/config.yaml",
        inference="results/runs/{run}/inference.yaml",
    output:
        predictions="models/{run}/seed{seed}/predictions-without-{sensor}.{ending}",
    log:
        "logs/predict/{run}-seed{seed}-without-{sensor}.{ending}.log",
    wildcard_constraints:
        sensor="lidar|camera",
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
        " --drop {wildcards.sensor:q} --config {params.runs:q}/{wildcards.run:q}/config.yaml"
        " --inference {params.runs:q}/{wildcards.run:q}/inference.yaml --root {params.root:q} --infos artifacts/infos --out {output.predictions:q} {params.more}"


rule evaluate_without:
    input:
        raw_data,
        labels=labels_of,
        predictions=predictions_without,
        config="results/runs/{run}/config.yaml",
        inference="results/runs/{run}/inference.yaml",
    output:
        metrics="results/runs/{run}/metrics-without-{sensor}.json",
    log:
        "logs/evaluate/{run}-without-{sensor}.log",
    wildcard_constraints:
        sensor="lidar|camera",
    params:
        runs=FROZEN_RUNS,
        root=SETTINGS.root,
        seeds=seed_options,
    shell:
        "vexkd evaluate {wildcards.run:q} --without {wildcards.sensor:q} --models models --results results"
        " --settings {params.runs:q} --root {params.root:q} {params.seeds} > {log:q} 2>&1"


# What a distilled student and its models make of one keyframe. The masks it reads, masks.safetensors, lie beside the weights
# undeclared: a training writes them only where it learns some, and every training has the same declared outputs.
rule inspect:
    input:
        raw_data,
        infos=INFOS,
        weights=inspected_weights,
    output:
        INSPECTION,
    log:
        "logs/inspect/{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
    shell:
        "vexkd inspect {wildcards.run:q} --models models --seed {params.seed:q} --root {params.root:q}"
        " --infos artifacts/infos --threads {threads} > {log:q} 2>&1"


# Alone on the machine where it can be: other jobs would be in the time measured.
rule latency:
    input:
        raw_data,
        infos=INFOS,
        weights=f"models/{{run}}/seed{SETTINGS.seeds[0]}/weights.safetensors",
    output:
        "results/runs/{run}/latency.json",
    log:
        "logs/latency/{run}.log",
    threads: CORES
    params:
        settings=FROZEN_PARAMS,
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
    shell:
        "vexkd latency {wildcards.run:q} --params {params.settings:q} --results results --models models"
        " --seed {params.seed:q} --root {params.root:q} --infos artifacts/infos --threads {threads} > {log:q} 2>&1"
