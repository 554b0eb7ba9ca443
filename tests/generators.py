"""What a call does to torch's generator."""

import torch


def seeds_drawn(call):
    """How many seeds a call draws from torch's generator."""
    torch.manual_seed(5)
    call()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    for count in range(3):
        if torch.equal(torch.get_rng_state(), after):
            return count
        torch.randint(-(2**63), 2**63 - 1, ())
    raise AssertionError("more than two")
