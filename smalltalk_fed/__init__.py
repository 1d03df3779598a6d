"""smalltalk-fed: train one language model on many machines that hardly talk.

The library behind the three programs `smalltalk`, `smalltalk-coordinator` and
`smalltalk-node`. Its rooms and the arrows between them are in docs/architecture.md.
"""

__version__ = "0.1.0"
