"""What a measurement is asked for."""

from __future__ import annotations

import attrs


@attrs.frozen
class Options:
    """What is measured where, and how thoroughly.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        quick: small images and few rounds: proves that everything runs; the numbers say little.
    """

    device: str = "cpu"
    quick: bool = False

    @property
    def cuda(self) -> bool:
        """Whether an accelerator is measured."""
        return self.device.startswith("cuda")

    @property
    def label(self) -> str:
        """How the results are called: "cpu", "cuda", "cpu-quick"."""
        return self.device.partition(":")[0] + ("-quick" if self.quick else "")

    def rounds(self, full: int) -> int:
        """Return how often each way is timed."""
        return min(full, 2) if self.quick else full
