"""`python -m vexkd.cli`."""

from vexkd.cli import main

main()
