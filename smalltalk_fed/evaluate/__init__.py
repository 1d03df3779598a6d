"""Using what a run made: the mixture in memory, its perplexity, its text, and the dense model.

`mixture` loads and routes, `perplexity` compares with a dense model on the same held-out
sequences, `generate` continues a prompt, `baseline` trains the dense model, `cli` has the
commands. Needs torch, which `cli` imports only when a command runs. Nothing is imported here.
"""
