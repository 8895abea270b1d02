# Tables and figures: small, from files only. Each depends on the runs it shows and on its own settings.


rule table:
    input:
        metrics=table_needs("metrics.json"),
        records=table_needs("provenance.json"),
        resamples=table_needs("resamples.json"),
        settings="results/settings/table-{table}.yaml",
    output:
        csv="results/tables/{table}.csv",
        md=report(
            "results/tables/{table}.md",
            category="Tables",
            caption="../report/table.rst",
        ),
        tex="results/tables/{table}.tex",
        provenance="results/tables/{table}.provenance.json",
    log:
        "logs/table/{table}.log",
    params:
        settings=seal.FROZEN,
    shell:
        "vexkd table {wildcards.table} --params {params.settings} --results results > {log} 2>&1"


rule distillation:
    input:
        metrics=distillation_metrics,
    output:
        png=report(
            "results/figures/distillation.png",
            category="Figures",
            caption="../report/distillation.rst",
        ),
        svg="results/figures/distillation.svg",
        csv="results/figures/distillation.csv",
    log:
        "logs/figure/distillation.log",
    params:
        settings=seal.FROZEN,
    shell:
        "vexkd figure distillation --params {params.settings} --results results > {log} 2>&1"


rule curves:
    input:
        curves=expand("results/runs/{run}/curve.csv", run=SETTINGS.runs),
    output:
        png=report(
            "results/figures/curves.png",
            category="Figures",
            caption="../report/curves.rst",
        ),
        svg="results/figures/curves.svg",
        csv="results/figures/curves.csv",
    log:
        "logs/figure/curves.log",
    params:
        settings=seal.FROZEN,
    shell:
        "vexkd figure curves --params {params.settings} --results results > {log} 2>&1"


rule birdseye:
    input:
        raw_data,
        infos=INFOS,
        predictions=first_predictions,
    output:
        png=report(
            "results/figures/birdseye-{run}.png",
            category="Figures",
            caption="../report/birdseye.rst",
        ),
        svg="results/figures/birdseye-{run}.svg",
        csv="results/figures/birdseye-{run}.csv",
    log:
        "logs/figure/birdseye-{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
    shell:
        "vexkd figure birdseye {wildcards.run} --results results --models models --root {params.root}"
        " --infos artifacts/infos --seed {params.seed} > {log} 2>&1"


rule map_figure:
    input:
        raw_data,
        infos=INFOS,
        maps=MAPS,
        predictions=first_predictions,
        metrics="results/runs/{run}/metrics.json",
    output:
        png=report(
            "results/figures/maps-{run}.png",
            category="Figures",
            caption="../report/maps.rst",
        ),
        svg="results/figures/maps-{run}.svg",
        csv="results/figures/maps-{run}.csv",
    log:
        "logs/figure/maps-{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
    shell:
        "vexkd figure maps {wildcards.run} --results results --models models --root {params.root}"
        " --infos artifacts/infos --maps artifacts/maps --seed {params.seed} > {log} 2>&1"


rule tables:
    input:
        expand("results/tables/{table}.{end}", table=SETTINGS.tables, end=TABLE_FILES),


rule figures:
    input:
        every_figure(),


for table in SETTINGS.tables:

    rule:
        name:
            f"table_{table}"
        input:
            expand("results/tables/{table}.{end}", table=table, end=TABLE_FILES),
        localrule: True
