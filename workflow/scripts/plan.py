"""What this call of Snakemake makes: its frozen settings, and by content what is stale (vexkd/calls.py, vexkd/content.py)."""

import sys
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError

from vexkd import calls, content, leftovers, products
from vexkd.calls import Call
from vexkd.data import infos_build
from vexkd.errors import InputError
from vexkd.experiment import HERE
from vexkd.report.outputs import of_report

MOST = 10  # sentences of a kind that a plan says


def begin(workflow: Any) -> Call:
    """The settings of this call; in a job those of the call that queued it.

    Snakemake hands `--config` on to the jobs that it starts or queues, and so the name of the call. Nothing is written
    before Snakemake knows what it is to do.
    """
    if not workflow.is_main_process:
        return calls.of_job(workflow.globals["config"].get("call"))
    call = calls.begin()
    given = list(workflow.config_settings.config_args or [])
    workflow.config_settings.config_args = [*given, f"call={call.folder.name}"]
    _before_planning(workflow, call)
    return call


def _before_planning(workflow: Any, call: Call) -> None:
    """Freeze the settings and judge what stands there, after Snakemake has read its rules and before it plans.

    A dry run writes no settings. Files that disagree are forced where they are in the plan; as targets (`--forcerun`)
    Snakemake would make them in any case.
    """
    prepare = workflow._prepare_dag

    def prepare_with_settings(*arguments: Any, **options: Any) -> None:
        execution = workflow.execution_settings
        works = execution is not None and not workflow.dryrun
        try:
            locks = calls.freeze(call, alone=execution.lock) if works else []
            found = judge(call, works=works)
        except InputError as error:
            raise WorkflowError(str(error)) from None
        workflow.globals["call_locks"] = locks  # held until this process ends
        _tell(call, found)
        prepare(*arguments, **options)
        workflow.dag.forcefiles.update(map(str, found.stale))
        _forget_other_inputs(workflow, {str(path) for path in found.agreed})

    workflow._prepare_dag = prepare_with_settings


def _tell(call: Call, found: content.Verdicts) -> None:
    """Say why files are to be made again, and what is left over."""
    sentences = list(dict.fromkeys(found.stale.values()))
    left = leftovers.sentences(call.params)
    for lines in (sentences, left):
        more = [f"... and {len(lines) - MOST} more such files."] if len(lines) > MOST else []
        for line in lines[:MOST] + more:
            print(f"{line.rstrip('.')}.", file=sys.stderr, flush=True)


def _forget_other_inputs(workflow: Any, agreed: set[str]) -> None:
    """What agrees by content is not outdated by other names of its inputs that Snakemake remembers, such as those of a root."""
    changed = workflow.persistence.input_changed
    workflow.persistence.input_changed = lambda job: [] if agreed.issuperset(map(str, job.output)) else changed(job)


def judge(call: Call, *, works: bool) -> content.Verdicts:
    """Which files are to be made again; the times of the others are put in order. works: a changed splits.json is taken over."""
    _refuse_the_future(call)
    digests = content.Digests(content.MEMORY)
    version = next(iter(call.params.runs.values())).data.version
    digests.splits = infos_build.renew_splits(HERE.infos, Path(call.params.root), version, write=works)
    made = [*products.of_experiment(call.params, digests), *of_report(call.params, digests)]
    found = content.settle(made, digests)
    digests.save()
    return found


def _refuse_the_future(call: Call) -> None:
    """Bring the times of what jobs read to the present, or end here with a sentence where that may not be done."""
    made = [HERE.artifacts, HERE.models, HERE.results]
    town = [Path(call.params.root)] if call.params.synthetic else []
    backbones = [file for run in call.params.runs.values() if (file := HERE.backbone(run))]
    left = content.bring_to_present([*made, *town, *backbones])
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise InputError(
            f"{left[0]}{more}: dated in the future, and what is made from it would be refused as older; set this machine's"
            " clock right, or let the file's owner `touch` it."
        )
