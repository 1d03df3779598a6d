"""Means: how many bytes travelled, and what is written to the log. No torch, no grpc."""
