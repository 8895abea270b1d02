"""The command of the stages in dvc.yaml: Snakemake makes what is asked for, then all is held against params.yaml.

DVC reads params.yaml after a stage's command. So the command fails if the file changed meanwhile, and it fails if a
run's weights or metrics were not made with it: what DVC records is what was made. The profile is SNAKEMAKE_PROFILE's,
or local. `python dvc_stage.py seal` makes nothing: it fails where something is still to be made (for `make
seal`), and `record` lets DVC record what stands there.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the code of this checkout, whatever is installed

from vexkd import leftovers, seal, settings  # noqa: E402
from vexkd.errors import InputError  # noqa: E402
from vexkd.report import outputs  # noqa: E402

PARAMS = Path("params.yaml")


def snakemake(*targets: str, options: tuple[str, ...] = (), quiet: bool = False) -> str:
    """Run Snakemake on these targets, in this environment; its failure is ours. Returns what it said where it is quiet."""
    environment = {**os.environ, "SNAKEMAKE_PROFILE": os.environ.get("SNAKEMAKE_PROFILE") or "local"}
    command = [sys.executable, "-m", "snakemake", *options, "--", *targets]
    heard = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if quiet else {}
    return subprocess.run(command, env=environment, check=True, text=True, **heard, encoding="utf-8").stdout or ""


def make(target: str) -> None:
    """Make a target; the town first and by itself where it is missing, for that alone outdates nothing made from it."""
    params = settings.load(PARAMS)
    if params.synthetic is not None and not Path(params.root).is_dir():
        snakemake(params.root)
    snakemake(target)


def refuse_unmade() -> None:
    """Whether everything is there that is asked for, the plan tells."""
    if "Nothing to be done" not in snakemake("all", options=("--dry-run",), quiet=True):
        raise InputError(
            "some files are still to be made (`snakemake --profile local -n` lists them); run snakemake first."
        )


def everything_wrong(params: settings.Params) -> list[str]:
    """One sentence for each file that is not what the settings ask for now, or is left over from others."""
    return [*seal.check(params), *outputs.problems(params), *leftovers.sentences(params)]


def record() -> None:
    """Let DVC record what stands there; with -q it would keep its reason to itself, so that is heard and told."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "-f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()[-1:]
        reason = " ".join(said).replace("ERROR: ", "") or f"it ended with status {done.returncode}"
        raise InputError(f"DVC could not record what was made: {reason}.")


def main(target: str) -> None:
    before = PARAMS.read_text(encoding="utf-8")
    make(target)
    if PARAMS.read_text(encoding="utf-8") != before:
        raise InputError(f"{PARAMS} changed while this ran, so nothing is recorded; run `dvc repro` again.")
    problems = everything_wrong(settings.load(PARAMS)) if target == "all" else []
    if problems:
        raise InputError("\n".join([*problems, "Nothing is recorded."]))


if __name__ == "__main__":
    try:
        {"seal": refuse_unmade, "record": record}.get(sys.argv[1], lambda: main(sys.argv[1]))()
    except InputError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
