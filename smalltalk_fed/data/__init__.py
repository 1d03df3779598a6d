"""Text to tokens to batches.

`reading` streams documents, `tokenizer` makes or takes a tokenizer, `prepare` writes a
corpus folder, `corpus` reads it (memory-mapped, numpy only) and `loader` feeds a device.
Only `loader` imports torch, so that a program without torch can open a corpus. Nothing is
imported here.
"""
