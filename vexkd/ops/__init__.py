"""Operators the models are built on. Each has a plain route that reads like its definition, a fast route, and a test
that the two agree in values and gradients.
"""
