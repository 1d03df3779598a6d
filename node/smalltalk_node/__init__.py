"""The node's program: does work units on one machine, and says what leaves it.

It opens every conversation, trusts one authority alone, and imports torch only when work
starts.
"""
