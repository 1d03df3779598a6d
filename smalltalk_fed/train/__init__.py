"""Learning: the one training loop, scoring, checkpoints, and what each work unit computes.

`units` holds the units as plain functions of their inputs; both carriers call them. `em` is
Algorithm 1 in one process, the oracle that distributed runs are compared with. Needs torch.
"""
