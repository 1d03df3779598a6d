"""Randomness that nobody else can know: what privacy rests on.

A keystream of AES-256 in counter mode under a key from the operating system's generator, turned
into uniform and normal numbers in float64. Rules: the key is made anew in every process and for
every training, is never written anywhere and never derived from the run's seed, so that noise is
used once only, whatever was interrupted, repeated or restored from a checkpoint. Tests give a
key. What the noise is added to is `private_sgd`'s and `noised_counts`' part.

Normal numbers are added to values in float64 and rounded once: floats of a generator have gaps
that a sum in the same precision can betray (Jin et al. 2021, arXiv 2112.05307); once float64 is
rounded to float32 those are far below what is sent.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

KEY_BYTES = 32
_BLOCK_BYTES = 1 << 24


class SecretNoise:
    """A stream of secret random numbers; each is given out once."""

    def __init__(self, key: bytes | None = None) -> None:
        """`key`: 32 bytes, for tests alone; None: fresh from the operating system."""
        key = secrets.token_bytes(KEY_BYTES) if key is None else key
        # One key, one stream: the counter may begin at nought.
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> np.ndarray:
        """Return float64[count], uniform over (0, 1] in steps of 2^-53."""
        bits = np.frombuffer(self._bytes(8 * count), dtype="<u8") >> np.uint64(11)
        return (bits + np.uint64(1)) * 2.0**-53

    def normal(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Return float64 numbers from N(0, 1) of this shape, on the CPU (Box and Muller 1958)."""
        count = math.prod(shape)
        pairs = -(-count // 2)
        uniform = torch.from_numpy(self.uniform(2 * pairs))
        radius = uniform[:pairs].log_().mul_(-2).sqrt_()
        angle = uniform[pairs:].mul_(2 * math.pi)
        both = torch.cat((radius * angle.cos(), radius * angle.sin()))
        return both[:count].view(shape)

    def chosen(self, count: int, rate: float) -> np.ndarray:
        """Return which of `count` things are drawn, each by itself with probability `rate`.

        Ascending int64: a Poisson batch, of which the size is random too.
        """
        return np.flatnonzero(self.uniform(count) <= rate)

    def _bytes(self, count: int) -> bytes:
        # The encryptor wants bytes to hide; hiding noughts gives the keystream.
        parts = [bytes(min(_BLOCK_BYTES, count - at)) for at in range(0, count, _BLOCK_BYTES)]
        return b"".join(self._stream.update(part) for part in parts)


def noised_counts(counts_E: np.ndarray, deviation: float, noise: SecretNoise) -> np.ndarray:
    """Return counts with normal noise of this deviation, rounded, none below 0; int64[E].

    A sequence more or less changes one count by one, so that this is the Gaussian mechanism with
    noise multiplier `deviation`; rounding, cutting at 0 and withholding small counts afterwards
    cost nothing. Raises ValueError for a deviation that is not above 0.
    """
    if not deviation > 0:
        raise ValueError(f"the noise on counts must be above 0, not {deviation}")
    drawn_E = noise.normal(counts_E.shape).numpy() * deviation
    return np.maximum(np.rint(counts_E + drawn_E), 0).astype(np.int64)
