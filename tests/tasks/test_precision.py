"""What nobody chose follows the device; what somebody chose stands."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from secateur.errors import SecateurError
from secateur.tasks.precision import PRECISIONS, computes_bf16, resolve_precision
from secateur.tasks.reading import batch_loss


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    computes_bf16.cache_clear()
    yield
    computes_bf16.cache_clear()


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "arm", "expected"),
    [
        ("x86_64", False, False, True, "fp32"),  # oneDNN says yes of AVX-512 without instructions for bf16
        ("x86_64", True, False, False, "bf16"),
        ("AMD64", False, True, False, "bf16"),
        ("aarch64", False, False, True, "bf16"),
        ("arm64", True, True, False, "fp32"),
    ],
)
def test_a_processor_is_asked_for_its_instructions(
    monkeypatch: pytest.MonkeyPatch, machine: str, avx512_bf16: bool, amx: bool, arm: bool, expected: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: arm, raising=False)
    assert resolve_precision("auto", "cpu") == expected


def test_a_build_without_onednn_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_without_emulation(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert resolve_precision("auto", "cuda:1") == ("bf16" if native else "fp32")


def test_a_choice_stands_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.tasks.precision.computes_bf16", lambda device: False)
    assert [resolve_precision(name, device) for name in PRECISIONS for device in ("cpu", "cuda", "mps")] == [
        *["bf16"] * 3,
        *["fp32"] * 3,
    ]
    with pytest.raises(SecateurError, match="precision: no 'fp16'"):
        resolve_precision("fp16", "cpu")


@pytest.mark.parametrize("slow", [True, False])
def test_a_loss_is_computed_in_what_the_device_is_fast_at(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    seen: list[torch.dtype] = []

    class Writer(torch.nn.Linear):
        config = SimpleNamespace(is_encoder_decoder=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> object:
            logits = super().forward(input_ids.float())
            seen.append(logits.dtype)
            return SimpleNamespace(logits=logits)

    monkeypatch.setattr("secateur.tasks.precision.computes_bf16", lambda device: not slow)
    ones = torch.ones(2, 3, dtype=torch.long)
    batch = {"input_ids": ones, "attention_mask": ones, "labels": torch.zeros(2, 1, dtype=torch.long)}
    loss = batch_loss(Writer(3, 4), batch, precision="auto")
    assert seen == [torch.float32 if slow else torch.bfloat16] and loss.dtype == torch.float32
