"""Words: the run's configuration, shapes of models, and the two manifests.

No torch, no I/O except reading run.toml; everything above leans on this.
"""
