"""The workflow on a real Slurm, which cluster.py brings up on this machine."""
