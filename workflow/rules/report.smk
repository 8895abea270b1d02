# Tables, figures and the page: small, from files only. Each depends on the runs it shows and on its own settings.


include: "report_functions.smk"


rule table:
    input:
        table_sources,
        settings=written(EXPERIMENT.shared_settings("table-{table}")),
    output:
        csv=EXPERIMENT.tables / "{table}.csv",
        md=report(
            EXPERIMENT.tables / "{table}.md",
            category="Tables",
            caption="../report/table.rst",
        ),
        tex=EXPERIMENT.tables / "{table}.tex",
        provenance=EXPERIMENT.tables / "{table}.provenance.json",
    log:
        LOGS / "table/{table}.log",
    shell:
        "vexkd table {wildcards.table:q} > {log:q} 2>&1"


rule figure:
    input:
        figure_sources,
        settings=written(EXPERIMENT.shared_settings("figure-{figure}")),
    output:
        png=report(
            EXPERIMENT.figures / "{figure}.png",
            category="Figures",
            caption="../report/figure.rst",
        ),
        svg=EXPERIMENT.figures / "{figure}.svg",
        csv=EXPERIMENT.figures / "{figure}.csv",
        provenance=EXPERIMENT.figures / "{figure}.provenance.json",
    log:
        LOGS / "figure/{figure}.log",
    wildcard_constraints:
        figure="|".join(map(re.escape, sources.figures(SETTINGS))),
    params:
        caption=caption,
    shell:
        "vexkd figure {wildcards.figure:q} > {log:q} 2>&1"


rule report_page:
    input:
        expand(EXPERIMENT.tables / "{table}.md", table=SETTINGS.tables),
        figure_files(sources.figures(SETTINGS)),
        page_sources,
        settings=written(*every_runs_settings()),
    output:
        EXPERIMENT.page,
    log:
        LOGS / "report_page.log",
    shell:
        "vexkd page > {log:q} 2>&1"


rule tables:
    input:
        table_files(SETTINGS.tables),


rule figures:
    input:
        figure_files(sources.figures(SETTINGS)),


for table in SETTINGS.tables:

    rule:
        name:
            f"table_{table}"
        input:
            table_files([table]),
        localrule: True


for name, rows in SETTINGS.figures.items():
    if rows:

        rule:
            name:
                f"figure_{name.replace('-', '_')}"
            input:
                figure_files(named_figures(name)),
            localrule: True
