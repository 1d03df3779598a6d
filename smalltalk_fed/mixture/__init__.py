"""The method in numpy: permutations, scores, balanced assignment, segments, costs, the package.

Rules: numpy and the standard library only (pydantic for `mixture.json`); no clock, no global
randomness, no torch. Only `package` touches the disk. Every result is a function of its
arguments, so that any machine can compute it again and compare.
"""
