"""The program `vexkd`: its verbs by group, and how a call of it ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

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


def verb(panel: str, *, example: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """Make a function a verb, in this panel of `vexkd --help`, with an example at the end of its own."""
    return app.command(name, rich_help_panel=panel, epilog=f"Example: {example}")


def main() -> None:
    """Run a verb; bad input ends in one sentence and status 2, what another process holds in 1, a saved stop in 75."""
    code.version()  # before the verb works: the checkout may move on meanwhile
    for stream in (sys.stdout, sys.stderr):  # a sign that the locale lacks, such as an arrow, must not end a verb
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    folder = Path.cwd()
    try:
        sentence, status = _run(sys.argv[1:] or ["--help"])
    finally:
        os.chdir(folder)  # -C is over
    if sentence:
        print(f"vexkd: {sentence}", file=sys.stderr)
    if status:
        sys.exit(status)


def _run(arguments: list[str]) -> tuple[str, int]:
    """What is wrong, in one sentence, and the exit status; "" and the verb's status where nothing is."""
    try:
        environment.announce(environment.settle())  # before torch is imported, which reads some of them only once
        return "", app(arguments, prog_name="vexkd", standalone_mode=False) or 0  # of an interrupt: 130
    except UsageError as error:
        return _wrong_call(error), 2
    except BusyError as error:
        return str(error), 1
    except InputError as error:
        # The error of a loader process comes back as its whole traceback, whose last line is the sentence.
        return str(error).splitlines()[-1].removeprefix("vexkd.errors.InputError: "), 2
    except OSError as error:  # a folder in place of a file, no permission, a full disk
        if error.errno is None:
            raise
        file = error.filename or f"a file that `{' '.join(['vexkd', *arguments[:1]])}` reads or writes, or its output"
        return f"{file}: {os.strerror(error.errno)}; name another place or mend this one.", 2


def _wrong_call(error: UsageError) -> str:
    """What is wrong with a verb or an option, as one sentence."""
    said = " ".join(error.format_message().split()).rstrip(".?")
    said = said.replace("Value error, ", "").replace("Input should", "it should")
    said = said.replace(". Did you mean ", "; the nearest known one is ")
    verb = error.ctx.command_path if error.ctx is not None else "vexkd"
    return f"{said[0].lower()}{said[1:]}; `{verb} --help` lists what there is."
