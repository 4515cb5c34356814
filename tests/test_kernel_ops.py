# SPDX-License-Identifier: Apache-2.0
"""The operators: known shapes, known gradients, the same numbers compiled, checkpointed and exported; the choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlqat.recipe import LayerSpec
from dlqat.refusal import Refusal
from dlqat.trainer.kernels import ops, reference
from dlqat.trainer.kernels.choose import SWITCH, choose
from dlqat.trainer.layers.qat import QATLinear
from dlqat.trainer.rounding.search import search

SPECS = {
    "dl-qat": LayerSpec(4, 16, rank=4),
    "peqa, asymmetric": LayerSpec(3, 32, symmetric=False, rank=0),
    "l4q": LayerSpec(4, 0, rank=4, magnitude=False, train_scales=True),
    "int8 activations": LayerSpec(4, 16, rank=4, activation_bits=8),
}


def layer(spec: LayerSpec) -> QATLinear:
    torch.manual_seed(0)
    linear = nn.Linear(64, 24)
    made = QATLinear(linear, spec, *search(linear.weight.detach(), spec.grid))
    if made.lora_b is not None:
        nn.init.normal_(made.lora_b, std=0.05)
    return made


def gradients(model: Any, m: QATLinear, x: Tensor) -> list[Tensor]:
    """Output and every gradient."""
    x = x.clone().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *(p for p in m.parameters() if p.requires_grad)])]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_layer_is_the_eager_one_bit_for_bit(name: str, backend: str) -> None:
    m, x = layer(SPECS[name]), torch.randn(3, 5, 64)
    want = gradients(m, m, x)
    torch._dynamo.reset()
    got = gradients(torch.compile(m, backend=backend, fullgraph=True), m, x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_compiled_layer_computes_in_bf16_under_autocast() -> None:
    m, x = layer(SPECS["dl-qat"]), torch.randn(5, 64)
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        want = gradients(m, m, x)
        got = gradients(torch.compile(m, backend="aot_eager", fullgraph=True), m, x)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", SPECS)
def test_checkpointing_changes_no_bit(name: str) -> None:
    m, x = layer(SPECS[name]), torch.randn(3, 5, 64)
    want = gradients(m, m, x)
    got = gradients(lambda t: checkpoint(m, t, use_reentrant=False), m, x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_torch_export_keeps_the_operator() -> None:
    m, x = layer(SPECS["int8 activations"]), torch.randn(5, 64)
    program = torch.export.export(m, (x,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"dlqat.linear.default", "dlqat.fake_quant.default"} <= called
    assert torch.equal(program.module()(x), m(x))


@pytest.mark.parametrize("name", ["dl-qat", "l4q"])
def test_the_operators_pass_torchs_own_checks(name: str) -> None:
    m = layer(SPECS[name])
    arguments = ops.arguments(m.weight, m.adapter())
    x = torch.randn(3, 5, 64, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    flags = m.spec.train_scales
    torch.library.opcheck(ops.linear, (x, *arguments, flags), test_utils=checks)
    torch.library.opcheck(
        ops.linear_backward,
        (torch.randn(3, 5, 24), x.detach(), *_detached(arguments), flags, True),
        test_utils=checks,
    )
    torch.library.opcheck(ops.weight, (*_detached(arguments), torch.bfloat16), test_utils=checks)
    torch.library.opcheck(ops.fake_quant, (x,), test_utils=checks)


def _detached(arguments: tuple[Any, ...]) -> list[Any]:
    return [a.detach() if isinstance(a, Tensor) else a for a in arguments]


def test_the_choice_and_its_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose(cpu) is reference
    assert choose(torch.device("mps")) is reference
    monkeypatch.setenv(SWITCH, "reference")
    assert choose(torch.device("cuda")) is reference
    monkeypatch.setenv(SWITCH, "triton")
    with pytest.raises(Refusal, match="needs a GPU"):
        choose(cpu)
    monkeypatch.setenv(SWITCH, "fast")
    with pytest.raises(Refusal, match="not one of triton, reference"):
        choose(cpu)
    pytest.importorskip("triton")
    monkeypatch.setenv(SWITCH, "")
    assert choose(torch.device("cuda")).__name__ == "dlqat.trainer.kernels.triton"  # pyright: ignore[reportAttributeAccessIssue]
