"""Maximise an objective inside a region: ``search`` from several starts, ``region`` the box, else one method a module.

Every method is ``maximise(objective, region, *, start, base, iterations, report) -> Maximum``.
"""
