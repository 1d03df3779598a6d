"""A machine that works for a run: its folder, its owner's limits, its files, its units.

What every node needs, whoever carries its orders: the native program and Flower's ClientApp
are built on this. Nothing here talks to anybody.
"""
