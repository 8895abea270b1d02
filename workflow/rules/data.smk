# Preparation: the embedded town where params.yaml asks for it, the check of the raw data, infos, the database of objects,
# the map rasters.


include: "data_functions.smk"


if SETTINGS.synthetic:

    rule synthesize:
        input:
            settings=written(EXPERIMENT.shared_settings("town")),
        output:
            root=directory(SETTINGS.root),
        log:
            LOGS / "synthesize.log",
        threads: CORES
        shell:
            "vexkd synthesize --workers {threads} > {log:q} 2>&1"


rule doctor:
    input:
        raw_data,
        settings=written(EXPERIMENT.shared_settings("data")),
    output:
        EXPERIMENT.manifest,
    log:
        LOGS / "doctor.log",
    benchmark:
        LOGS / "benchmarks/doctor.tsv"
    threads: CORES
    shell:
        "vexkd doctor --workers {threads} > {log:q} 2>&1"


rule infos:
    input:
        raw_data,
        manifest=manifest_of_infos,
    output:
        INFOS,
    log:
        LOGS / "infos.log",
    benchmark:
        LOGS / "benchmarks/infos.tsv"
    shell:
        "vexkd infos > {log:q} 2>&1"


rule paste:
    input:
        raw_data,
        infos=INFOS,
        settings=written(EXPERIMENT.shared_settings("paste")),
    output:
        PASTE,
    log:
        LOGS / "paste.log",
    benchmark:
        LOGS / "benchmarks/paste.tsv"
    priority: 20  # before the trainings: they take all cores, and many wait for them
    threads: CORES
    shell:
        "vexkd paste --workers {threads} > {log:q} 2>&1"


rule maps:
    input:
        raw_data,
        infos=INFOS,
        settings=written(EXPERIMENT.shared_settings("maps")),
    output:
        MAPS,
    log:
        LOGS / "maps.log",
    benchmark:
        LOGS / "benchmarks/maps.tsv"
    priority: 20  # before the trainings: they take all cores, and many wait for them
    threads: CORES
    shell:
        "vexkd maps --workers {threads} > {log:q} 2>&1"


# On the machine where snakemake runs, which has a network; or the user puts the file there.
if backbones():

    rule backbone:
        output:
            "{backbone}",
        log:
            LOGS / "fetch-weights/{backbone}.log",
        wildcard_constraints:
            backbone="|".join(re.escape(file) for file in backbones()),
        localrule: True
        params:
            run=first_with_backbone,
        shell:
            "vexkd fetch-weights {params.run:q} > {log:q} 2>&1"


rule prepare:
    input:
        EXPERIMENT.manifest,
        INFOS,
        paste_database(),
        map_rasters(),
        list(backbones()),
