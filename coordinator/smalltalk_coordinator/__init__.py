"""smalltalk-coordinator: the program that an organiser runs on a small VM.

Wires the core's state machine, the host's journal and blob store and the wire's messages to
a gRPC server with mutual TLS, and offers the operator's commands. Imports no torch.
"""
