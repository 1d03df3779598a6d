"""A seeded world around the real core: thousands of nodes, weeks, faults, on one machine.

`smalltalk_fed.core`'s Coordinator and Session run here unchanged. What carries them is
simulated: time, the network, the coordinator's host with its disk, the nodes' processes
with what they compute. Everything is a function of the scenario and its seed, so a run that
breaks a rule can be replayed and shrunk.
"""
