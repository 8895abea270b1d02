# What is measured of a finished model besides its scores, for the rows that a figure asks for.


include: "measure_functions.smk"


rule predict_without:
    input:
        raw_data,
        infos=INFOS,
        weights=TRAINING.weights,
        settings=written(RUN.config, RUN.inference),
    output:
        TRAINING.folder / "predictions-without-{sensor}.{ending}",
    log:
        LOGS / "predict/{run}-seed{seed}-without-{sensor}.{ending}.log",
    threads: train_threads
    resources:
        attempt=attempt_number,
    params:
        attempt=ATTEMPT,
        vexkd=processes,
        options=predict_options,
    shell:
        "exec {params.attempt} {resources.attempt} {log:q} {params.vexkd} predict {wildcards.run:q}"
        " --seed {wildcards.seed:q} --drop {wildcards.sensor:q} {params.options}"


rule evaluate_without:
    input:
        raw_data,
        labels=labels_of,
        predictions=predictions_without,
        settings=written(RUN.config, RUN.inference),
    output:
        RUN.metrics_without("{sensor}"),
    log:
        LOGS / "evaluate/{run}-without-{sensor}.log",
    shell:
        "vexkd evaluate {wildcards.run:q} --without {wildcards.sensor:q} > {log:q} 2>&1"


# What a distilled student and its models make of one keyframe. The masks it reads, masks.safetensors, lie beside the weights
# undeclared: a training writes them only where it learns some, and every training has the same declared outputs.
rule inspect:
    input:
        raw_data,
        infos=INFOS,
        weights=inspected_weights,
    output:
        EXPERIMENT.training("{run}", FIRST_SEED).inspection,
    log:
        LOGS / "inspect/{run}.log",
    shell:
        "vexkd inspect {wildcards.run:q} --threads {threads} > {log:q} 2>&1"


# Alone on the machine where it can be: other jobs would be in the time measured.
rule latency:
    input:
        raw_data,
        infos=INFOS,
        weights=EXPERIMENT.training("{run}", FIRST_SEED).weights,
    output:
        RUN.latency,
    log:
        LOGS / "latency/{run}.log",
    threads: CORES
    params:
        root=SETTINGS.root,
        infos=EXPERIMENT.infos,
        seed=FIRST_SEED,
    shell:
        "vexkd latency {wildcards.run:q} --seed {params.seed} --root {params.root:q} --infos {params.infos:q}"
        " --threads {threads} > {log:q} 2>&1"


rule summary:
    input:
        settings=written(RUN.config),
    output:
        RUN.summary,
    log:
        LOGS / "summary/{run}.log",
    shell:
        "vexkd summary {wildcards.run:q} --json {output:q} > {log:q} 2>&1"


# `update`: the page's prose stays, only what is between its markers is made.
rule models_doc:
    input:
        settings=written(*[EXPERIMENT.run(name).config for name in SETTINGS.runs]),
    output:
        update("docs/MODELS.md"),
    log:
        LOGS / "models_doc.log",
    shell:
        "vexkd summary --all --markdown {output:q} > {log:q} 2>&1"
