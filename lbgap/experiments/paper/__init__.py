"""The experiments of Keskar et al. 2016 (arXiv 1609.04836), repeated on the data at hand, and their report."""

from lbgap.experiments.paper.plan import OFFLINE, QUICK, ROWS, Plan, Row, choose
from lbgap.experiments.paper.run import EXPERIMENTS, paper, read_paper

__all__ = ["EXPERIMENTS", "OFFLINE", "QUICK", "ROWS", "Plan", "Row", "choose", "paper", "read_paper"]
