"""Experiments that put the pieces together."""

from lbgap.experiments.demo import Demo, demo

__all__ = ["Demo", "demo"]
