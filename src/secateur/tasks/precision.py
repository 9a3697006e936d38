"""What trainings and calibrations compute in: bf16 where the device has instructions for it, fp32 elsewhere.

A processor without them computes bf16 all the same, in a loop over single elements: a product of matrices takes fifty
times as long as in fp32 (AVX2, torch 2.13). So what nobody chose follows the device.
"""

from __future__ import annotations

import functools
import platform

import torch

from secateur.errors import SecateurError
from secateur.registry import suggest

AUTO = "auto"
PRECISIONS: dict[str, torch.dtype | None] = {"bf16": torch.bfloat16, "fp32": None}  # of autocast over fp32 weights
SLOW_BF16 = (
    "precision: bf16 has no instructions on this device, where it takes many times as long as fp32. Leave precision "
    "out, or set it to auto or fp32."
)


def resolve_precision(precision: str, device: str) -> str:
    """Settle what a device computes in.

    Args:
        precision: auto, bf16 or fp32; auto is bf16 where the device is fast at it.
        device: cpu, cuda or mps.

    Returns:
        bf16 or fp32.

    Raises:
        SecateurError: no such precision.

    Example:
        >>> resolve_precision("fp32", "cpu")
        'fp32'
    """
    if precision == AUTO:
        return "bf16" if computes_bf16(torch.device(device).type) else "fp32"
    if precision not in PRECISIONS:
        near = suggest(precision, PRECISIONS)
        raise SecateurError(f"precision: no {precision!r}. {near}There are: auto, {', '.join(PRECISIONS)}.")
    return precision


@functools.cache
def computes_bf16(device: str) -> bool:
    """Tell whether a device has instructions for products in bf16.

    Args:
        device: its type: cpu, cuda or mps.

    Returns:
        Of a processor, whether it has AVX512_BF16, AMX or Arm's BF16; of a GPU of CUDA, what torch says of it without
        emulation; of Apple's, whether torch computes bf16 there; yes for every other device.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)  # before it, torch leaves autocast's bf16 out
    if device != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    # Not on x86, where it is content with AVX-512.
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
