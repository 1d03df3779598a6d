"""Means: models in Llama's shape, their weights as bytes, their loss. Needs torch.

Models are `transformers` modules throughout, so that whatever is trained here loads
anywhere; `forward` computes the same function faster.
"""
