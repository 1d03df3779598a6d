"""smalltalk-node: the program that a node operator runs on a machine that trains.

Joins a run with one token, takes work units from the coordinator, does them with
`smalltalk_fed.train`, and sends back only what `--explain-egress` lists.
"""
