"""The program `vexkd`: its verbs by group, and how a call of it ends."""

from __future__ import annotations

import io
import os
import sys

import typer

from vexkd import code
from vexkd.errors import BusyError, InputError
from vexkd.train import environment

# Base of what typer raises for a wrong verb or option; it belongs to click, which newer versions of typer hold within.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    pretty_exceptions_enable=False,
    help="VeXKD as a workflow: data, trainings, distilled students, scores, tables. Every rule of the workflow calls one of"
    " these verbs.",
)


def main() -> None:
    """Run a verb; bad input ends in one sentence and status 2, what another process holds in 1, a saved stop in 75."""
    status = 2
    code.version()  # before the verb works: the checkout may move on meanwhile
    for stream in (sys.stdout, sys.stderr):  # a sign that the locale lacks, such as an arrow, must not end a verb
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        environment.announce(environment.settle())  # before torch is imported, which reads some of them only once
        status = app(sys.argv[1:] or ["--help"], prog_name="vexkd", standalone_mode=False)
    except UsageError as error:
        sentence = _wrong_call(error)
    except BusyError as error:
        sentence, status = str(error), 1
    except InputError as error:
        # The error of a loader process comes back as its whole traceback, whose last line is the sentence.
        sentence = str(error).splitlines()[-1].removeprefix("vexkd.errors.InputError: ")
    except OSError as error:  # a folder in place of a file, no permission, a full disk
        if error.errno is None:
            raise
        place = error.filename or f"a file that `{_verb()}` reads or writes, or its output"
        sentence = f"{place}: {os.strerror(error.errno)}; name another place or mend this one."
    else:
        if status:  # of an interrupt: 130
            sys.exit(status)
        return
    print(f"vexkd: {sentence}", file=sys.stderr)
    sys.exit(status)


def _verb() -> str:
    """The verb that was called, with the program's name."""
    return " ".join(["vexkd", *sys.argv[1:2]])


def _wrong_call(error: UsageError) -> str:
    """What is wrong with a verb or an option, as one sentence."""
    said = " ".join(error.format_message().split()).rstrip(".?")
    said = said.replace("Value error, ", "").replace("Input should", "it should")
    said = said.replace(". Did you mean ", "; the nearest known one is ")
    verb = error.ctx.command_path if error.ctx is not None else "vexkd"
    return f"{said[0].lower()}{said[1:]}; `{verb} --help` lists what there is."
