"""The command line: one verb per step of the pipeline, one module per group of verbs.

Imports of torch, spconv and the devkit wait until a verb needs them, so that `vexkd --help` answers at once.
"""

from vexkd.cli import data, runs, models, results, operations  # noqa: F401, I001 - the order of the groups in --help
from vexkd.cli.app import UsageError, app, main

__all__ = ["UsageError", "app", "main"]
