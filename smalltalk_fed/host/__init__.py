"""Drives the core: clock, SQLite journal, blob store, jobs in a worker process.

No torch and no carrier: native gRPC and Flower both call `Host`.
"""
