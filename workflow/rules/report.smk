# Tables and figures: small, from files only. Each depends on the runs it shows and on its own settings.


rule table:
    input:
        table_sources,
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
        settings=FROZEN_PARAMS,
    shell:
        "vexkd table {wildcards.table:q} --params {params.settings:q} --results results > {log:q} 2>&1"


rule distillation:
    input:
        chart_sources("distillation"),
    output:
        png=report(
            "results/figures/distillation.png",
            category="Figures",
            caption="../report/distillation.rst",
        ),
        svg="results/figures/distillation.svg",
        csv="results/figures/distillation.csv",
        provenance="results/figures/distillation.provenance.json",
    log:
        "logs/figure/distillation.log",
    params:
        settings=FROZEN_PARAMS,
    shell:
        "vexkd figure distillation --params {params.settings:q} --results results > {log:q} 2>&1"


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
        provenance="results/figures/curves.provenance.json",
    log:
        "logs/figure/curves.log",
    params:
        settings=FROZEN_PARAMS,
    shell:
        "vexkd figure curves --params {params.settings:q} --results results > {log:q} 2>&1"


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
        provenance="results/figures/birdseye-{run}.provenance.json",
    log:
        "logs/figure/birdseye-{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
    shell:
        "vexkd figure birdseye {wildcards.run:q} --results results --models models --root {params.root:q}"
        " --infos artifacts/infos --seed {params.seed:q} > {log:q} 2>&1"


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
        provenance="results/figures/maps-{run}.provenance.json",
    log:
        "logs/figure/maps-{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
    shell:
        "vexkd figure maps {wildcards.run:q} --results results --models models --root {params.root:q}"
        " --infos artifacts/infos --maps artifacts/maps --seed {params.seed:q} > {log:q} 2>&1"


rule chart:
    input:
        chart_sources(),
        settings="results/settings/figure-{chart}.yaml",
    output:
        png=report(
            "results/figures/{chart}.png",
            category="Figures",
            caption="../report/chart.rst",
        ),
        svg="results/figures/{chart}.svg",
        csv="results/figures/{chart}.csv",
        provenance="results/figures/{chart}.provenance.json",
    log:
        "logs/figure/{chart}.log",
    wildcard_constraints:
        chart="|".join(sorted(set(get_args(FigureName)) - set(PICTURES))),
    params:
        settings=FROZEN_PARAMS,
    shell:
        "vexkd figure chart {wildcards.chart:q} --params {params.settings:q} --results results > {log:q} 2>&1"


rule camera:
    input:
        raw_data,
        infos=INFOS,
        predictions=predictions_beside_student,
    output:
        png=report(
            "results/figures/camera-{run}.png",
            category="Figures",
            caption="../report/camera.rst",
        ),
        svg="results/figures/camera-{run}.svg",
        csv="results/figures/camera-{run}.csv",
        provenance="results/figures/camera-{run}.provenance.json",
    log:
        "logs/figure/camera-{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
        student=student_of,
    shell:
        "vexkd figure camera {wildcards.run:q} --student {params.student:q} --results results --models models"
        " --root {params.root:q} --infos artifacts/infos --seed {params.seed:q} > {log:q} 2>&1"


rule errors:
    input:
        raw_data,
        infos=INFOS,
        predictions=predictions_beside_student,
    output:
        png=report(
            "results/figures/errors-{run}.png",
            category="Figures",
            caption="../report/errors.rst",
        ),
        svg="results/figures/errors-{run}.svg",
        csv="results/figures/errors-{run}.csv",
        provenance="results/figures/errors-{run}.provenance.json",
    log:
        "logs/figure/errors-{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
        student=student_of,
    shell:
        "vexkd figure errors {wildcards.run:q} --student {params.student:q} --results results --models models"
        " --root {params.root:q} --infos artifacts/infos --seed {params.seed:q} > {log:q} 2>&1"


rule energy:
    input:
        raw_data,
        infos=INFOS,
        inspection=INSPECTION,
    output:
        png=report(
            "results/figures/energy-{run}.png",
            category="Figures",
            caption="../report/energy.rst",
        ),
        svg="results/figures/energy-{run}.svg",
        csv="results/figures/energy-{run}.csv",
        provenance="results/figures/energy-{run}.provenance.json",
    log:
        "logs/figure/energy-{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
    shell:
        "vexkd figure energy {wildcards.run:q} --results results --models models --root {params.root:q}"
        " --infos artifacts/infos --seed {params.seed:q} > {log:q} 2>&1"


rule masks:
    input:
        raw_data,
        infos=INFOS,
        maps=maps_of,
        inspection=INSPECTION,
    output:
        png=report(
            "results/figures/masks-{run}.png",
            category="Figures",
            caption="../report/masks.rst",
        ),
        svg="results/figures/masks-{run}.svg",
        csv="results/figures/masks-{run}.csv",
        provenance="results/figures/masks-{run}.provenance.json",
    log:
        "logs/figure/masks-{run}.log",
    params:
        root=SETTINGS.root,
        seed=SETTINGS.seeds[0],
        more=mask_options,
    shell:
        "vexkd figure masks {wildcards.run:q} --results results --models models --root {params.root:q}"
        " --infos artifacts/infos {params.more} --seed {params.seed:q} > {log:q} 2>&1"


rule report_page:
    input:
        expand("results/tables/{table}.md", table=SETTINGS.tables),
        every_figure(),
        expand(
            "results/runs/{run}/{name}",
            run=SETTINGS.runs,
            name=[
                "config.yaml",
                "inference.yaml",
                "metrics.json",
                "curve.csv",
                "provenance.json",
                "resamples.json",
            ],
        ),
        measurements(SETTINGS.runs),
    output:
        "results/report.html",
    log:
        "logs/report_page.log",
    params:
        settings=FROZEN_PARAMS,
    shell:
        "vexkd page --params {params.settings:q} --results results > {log:q} 2>&1"


rule summary:
    input:
        config="results/runs/{run}/config.yaml",
    output:
        "results/runs/{run}/summary.json",
    log:
        "logs/summary/{run}.log",
    params:
        settings=FROZEN_PARAMS,
    shell:
        "vexkd summary {wildcards.run:q} --params {params.settings:q} --json {output:q} > {log:q} 2>&1"


# `update`: the page's prose stays, only what is between its markers is made.
rule models_doc:
    input:
        expand("results/runs/{run}/config.yaml", run=SETTINGS.runs),
    output:
        update("docs/MODELS.md"),
    log:
        "logs/models_doc.log",
    params:
        settings=FROZEN_PARAMS,
    shell:
        "vexkd summary --all --params {params.settings:q} --markdown {output:q} > {log:q} 2>&1"


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


for name, rows in SETTINGS.figures.items():
    if rows:

        rule:
            name:
                f"figure_{name.replace('-', '_')}"
            input:
                expand(
                    "results/figures/{figure}.{end}",
                    figure=named_figures(name),
                    end=FIGURE_FILES,
                ),
            localrule: True
