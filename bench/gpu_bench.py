"""What the GPU benchmarks share: device and sizes, where rows go, and the rule for whole networks."""

import torch

from cct.models import create_model

from . import gpu_peers, gpu_timing
from .session import PEER_FACTOR, Session

# Of the rows. A CPU without bfloat16 instructions would take minutes a call: there the self-test takes float32.
BF16 = torch.bfloat16 if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
FULL = {"model": ("CCT-7/3x1", "cct_7_3x1_32", {}), "batch": 1024, "ops": ("CCT-7/3x1",), "rounds": 20}
TINY = {"model": ("CCT-2/3x2", "cct_2_3x2_32", {"img_size": 16}), "batch": 4, "ops": ("CCT-2/3x2",), "rounds": 2}


class Bench:
    """What the stages share: device, sizes, where rows go."""

    def __init__(self, device, tiny, folder):
        self.device, self.sizes, self.folder = device, TINY if tiny else FULL, folder
        self.what, self.name, self.options = self.sizes["model"]
        self.compiled = () if tiny else (*gpu_peers.COMPILE,)
        self.eager = ("published", *(gpu_peers.BACKENDS if device == "cuda" else ()))

    def session(self, timer=gpu_timing.cold, rounds=None):
        rounds = rounds or self.sizes["rounds"]
        return Session(rounds=rounds, min_time=1e-3, threads=torch.get_num_threads(), peers=[], folder=self.folder, timer=timer)

    def model(self, **options):
        torch.manual_seed(0)
        return create_model(self.name, fused=False, **self.options, **options).to(self.device)

    def key(self, kind, what, batch, dtype=BF16, **more):
        return {"kind": kind, "what": what, "device": self.device, "dtype": str(dtype)[6:], "batch": batch, **more}


def hold_to_norm(name, result, value, torch_own, exact, dtype):
    """The rule in the L2 norm, for tensors at the end of a whole network: one element in a million may lie farther out."""
    error, allowed, size = ((a.double() - b).norm().item() for a, b in ((value, exact), (torch_own, exact), (exact, 0.0)))
    bound = (1 if name.startswith("ours") else PEER_FACTOR) * (2 * allowed + 4 * torch.finfo(dtype).eps * size)
    assert error <= bound, f"wrong {result}: {error:.3g} above {bound:.3g}"
