"""The demonstration: a whole run on this machine, by the programs that a real run uses.

`driver` starts and watches them as child processes, `results` collects what they say into
report.json, `report` draws it. Nothing here trains, routes or reaches into a program: all
goes through command lines and files. No torch. Nothing is imported here.
"""
