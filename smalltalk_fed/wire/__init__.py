"""Means: what travels between the two programs, and why it can be trusted. No torch, no sockets.

Messages to and from protobuf (`convert`), certificates and the join token, signatures over
results and manifests, and the strict reading of weights. What can leave a node is listed in
`egress`.
"""
