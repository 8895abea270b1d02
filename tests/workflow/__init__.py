"""The workflow, run with a stand-in for `vexkd`."""
