"""Carrier two: the same run over Flower, as a ServerApp and a ClientApp.

The ServerApp holds the coordinator's host and, for each Flower node, the node's side of the
conversation (`core.session`); the ClientApp does one turn's work and keeps all else on disk.
Nothing of the method is here. flwr is imported in this room alone.
"""
