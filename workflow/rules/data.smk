# Preparation: the embedded town where params.yaml asks for it, the check of the raw data, infos, the database of objects,
# the map rasters.

if SETTINGS.synthetic:

    rule synthesize:
        input:
            settings="results/settings/town.yaml",
        output:
            root=directory(SETTINGS.root),
        log:
            "logs/synthesize.log",
        threads: CORES
        params:
            settings=FROZEN_SETTINGS,
            town=SETTINGS.synthetic,
        shell:
            "vexkd synthesize --scenes {params.town.scenes} --samples {params.town.samples}"
            " --seed {params.town.seed} --width {params.town.image_size[0]} --height {params.town.image_size[1]}"
            " --beams {params.town.beams} --azimuths {params.town.azimuths} --sweeps {params.town.sweeps_per_sample}"
            " --workers {threads} -- {output.root:q} > {log:q} 2>&1 && cp -- {params.settings:q}/town.yaml {output.root:q}/town.yaml"


rule doctor:
    input:
        raw_data,
        settings="results/settings/data.yaml",
    output:
        manifest="artifacts/manifest.parquet",
    log:
        "logs/doctor.log",
    benchmark:
        "logs/benchmarks/doctor.tsv"
    threads: CORES
    params:
        settings=FROZEN_SETTINGS,
        root=SETTINGS.root,
        version=VERSION,
        needed=needed_files,
    shell:
        "vexkd doctor --root {params.root:q} --version {params.version:q} --manifest {output.manifest:q}"
        " --splits {params.needed[splits]:q} --sensors {params.needed[sensors]:q} --skip-unused"
        " --workers {threads} > {log:q} 2>&1 && cp {params.settings:q}/data.yaml artifacts/data.yaml"


rule infos:
    input:
        raw_data,
        manifest=manifest_of_infos,
    output:
        INFOS,
    log:
        "logs/infos.log",
    benchmark:
        "logs/benchmarks/infos.tsv"
    params:
        root=SETTINGS.root,
        version=VERSION,
        settings=FROZEN_PARAMS,
    shell:
        "vexkd infos --root {params.root:q} --version {params.version:q} --manifest artifacts/manifest.parquet --out artifacts/infos"
        " --params {params.settings:q}"
        " > {log:q} 2>&1"


rule paste:
    input:
        raw_data,
        infos=INFOS,
        settings="results/settings/paste.yaml",
    output:
        points="artifacts/paste/points.npy",
        index="artifacts/paste/index.parquet",
    log:
        "logs/paste.log",
    benchmark:
        "logs/benchmarks/paste.tsv"
    priority: 20  # before the trainings: they take all cores, and many wait for them
    threads: CORES
    params:
        root=SETTINGS.root,
        settings=paste_settings,
    shell:
        "vexkd paste --root {params.root:q} --infos artifacts/infos --out artifacts/paste"
        " --split {params.settings[split]:q} --min-points {params.settings[min_points]}"
        " --sweeps {params.settings[sweeps]} --workers {threads} > {log:q} 2>&1"


rule maps:
    input:
        raw_data,
        infos=INFOS,
        settings="results/settings/maps.yaml",
    output:
        MAPS,
    log:
        "logs/maps.log",
    benchmark:
        "logs/benchmarks/maps.tsv"
    priority: 20  # before the trainings: they take all cores, and many wait for them
    threads: CORES
    params:
        root=SETTINGS.root,
        settings=map_settings,
    shell:
        "vexkd maps --root {params.root:q} --infos artifacts/infos --out artifacts/maps"
        " --reach {params.settings[reach]} --cell {params.settings[cell]} --edges {params.settings[edges]}"
        " --workers {threads} > {log:q} 2>&1"


# On the machine where snakemake runs, which has a network; or the user puts the file there.
if BACKBONES:

    rule backbone:
        output:
            "{backbone}",
        log:
            "logs/fetch-weights/{backbone}.log",
        wildcard_constraints:
            backbone="|".join(re.escape(file) for file in BACKBONES),
        localrule: True
        params:
            settings=FROZEN_PARAMS,
            run=first_with_backbone,
        shell:
            "vexkd fetch-weights {params.run:q} --params {params.settings:q} > {log:q} 2>&1"


rule prepare:
    input:
        "artifacts/manifest.parquet",
        INFOS,
        paste_database(),
        map_rasters(),
        list(BACKBONES),
