"""Figures from results files, predictions and inspections: each a PNG, an SVG and the CSV of what is drawn."""
