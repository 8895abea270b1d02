"""VeXKD as a workflow: a LiDAR+camera teacher and single-sensor students taught through learned BEV masks."""

__version__ = "0.1.0"
