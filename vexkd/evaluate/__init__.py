"""Scores from files: no model, no GPU. `detection` holds nuScenes' detection metric."""
