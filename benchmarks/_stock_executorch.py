# SPDX-License-Identifier: Apache-2.0
"""ExecuTorch's own recipe for the integers of a folded model: the peer of benchmarks/executorch_speed.py.

int4 groups of 32 with int8 dynamic activations (torchao), int8 embedding and head, static cache with
llama::update_cache and custom_sdpa, torch.export, to_edge_transform_and_lower with XNNPACK's partitioner for
dynamically quantized linears. Its lowering takes minutes a model.

    python benchmarks/_stock_executorch.py model_dir/folded stock.pte [LAYERS]     made once, given by --stock
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlqat import architecture
from dlqat.exporters import decoder
from dlqat.exporters.builder import Attention, Linear
from dlqat.folded import Quantized, disk
from dlqat.folded.disk import FoldedModel

CONTEXT = 512


def first_layers(model: FoldedModel, count: int) -> FoldedModel:
    """The model without its later layers."""
    return model if not count else replace(model, config={**model.config, "num_hidden_layers": count})


class Stock(nn.Module):
    """The decoder as the plain torch module that ExecuTorch's lowering is made for."""

    def __init__(self, model: FoldedModel) -> None:
        super().__init__()
        # in memory: nothing is read while torch.export traces
        model = replace(model, layers=dict(model.layers.items()), tensors=dict(model.tensors.items()))
        self.model, self.facts = model, architecture.read(model.config)
        self.linears = nn.ModuleDict()
        for name in (*self.facts.linears(), decoder.HEAD):
            leaf = decoder.weight(model, name)
            assert isinstance(leaf, Quantized)
            self.linears[name.replace(".", "/")] = Groups(leaf) if leaf.grid.group_size else Rows(leaf)
        table = decoder.weight(model, decoder.EMBEDDING)
        assert isinstance(table, Quantized)
        self.register_buffer("codes", table.codes)
        self.register_buffer("scales", table.scales[:, 0].contiguous())
        shape = (1, CONTEXT, self.facts.kv_heads, self.facts.head_dim)
        for i in range(self.facts.layers):
            self.register_buffer(f"keys{i}", torch.zeros(shape))
            self.register_buffer(f"values{i}", torch.zeros(shape))
        cos, sin = self.facts.rope_tables(CONTEXT)
        self.register_buffer("cos", torch.from_numpy(cos))
        self.register_buffer("sin", torch.from_numpy(sin))

    def forward(self, ids: Tensor, position: Tensor) -> Tensor:
        step = Step(self, ids, position)
        decoder.forward(step, self.model)
        return step.logits


class Groups(nn.Module):
    """int4 groups: torchao's tensor for Int8DynamicActivationInt4Weight, made from given integers."""

    def __init__(self, leaf: Quantized) -> None:
        super().__init__()
        place = import_module("torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor")
        rounding = place.IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN
        zeros, block = torch.zeros_like(leaf.scales, dtype=torch.int8), (1, leaf.grid.group_size)
        weight = place.IntxUnpackedToInt8Tensor(
            leaf.codes, leaf.scales, zeros, torch.int4, block, torch.float32, rounding
        )
        out, inputs = leaf.codes.shape
        self.inner = nn.Linear(inputs, out, bias=False, device="meta")
        self.inner.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Rows(nn.Module):
    """int8 rows with int8 dynamic activations."""

    def __init__(self, leaf: Quantized) -> None:
        super().__init__()
        self.register_buffer("codes", leaf.codes)
        self.register_buffer("scales", leaf.scales[:, 0].contiguous())
        self.register_buffer("zeros", torch.zeros(leaf.codes.shape[0], dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        ops, bounds = torch.ops.quantized_decomposed, (-128, 127, torch.int8)
        scales, zeros = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
        rounded = ops.quantize_per_token(x, scales, zeros, *bounds)
        x = ops.dequantize_per_token(rounded, scales, zeros, *bounds, torch.float32)
        return F.linear(x, ops.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, *bounds))


class Step:
    """exporters.builder.Builder on the tensors of one forward."""

    def __init__(self, module: Stock, ids: Tensor, position: Tensor) -> None:
        self.module, self.ids, self.logits = module, ids, ids
        self.start: Any = position[0].item()
        count = ids.shape[1]
        torch._check(self.start >= 0)  # noqa: SLF001
        torch._check(self.start + count <= CONTEXT)  # noqa: SLF001
        self.cos, self.sin = (t.narrow(0, self.start, count)[:, None] for t in (module.cos, module.sin))

    def supports(self, name: str, weight: object) -> None: ...

    def describe(self, name: str, weight: object) -> str:
        return name

    def embed(self, name: str, table: object) -> Tensor:
        lookup = torch.ops.quantized_decomposed.embedding_byte
        return lookup(self.module.codes, self.module.scales, None, -128, 127, self.ids)

    def linears(self, x: Tensor, layers: Sequence[Linear]) -> tuple[Tensor, ...]:
        return tuple(self.module.linears[layer.name.replace(".", "/")](x) for layer in layers)

    def take(self, name: str, x: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def rms_norm(self, name: str, x: Tensor, weight: Tensor, eps: float, heads: int = 1) -> Tensor:
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    def add(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def scale(self, name: str, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def gated_gelu(self, name: str, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") * up

    def gated_silu(self, name: str, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def attention(self, name: str, spec: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, spec.head_dim)) for t in (q, k, v))
        keys, values = (getattr(self.module, f"{what}{spec.layer}") for what in ("keys", "values"))
        torch.ops.llama.update_cache(self._rotate(k), keys, self.start)
        torch.ops.llama.update_cache(v, values, self.start)
        y = torch.ops.llama.custom_sdpa(self._rotate(q), keys, values, self.start, None, 0.0, True)
        return y.flatten(2)

    def select(self, name: str, x: Tensor) -> Tensor:
        return x[:, -1:]

    def output(self, logits: Tensor) -> None:
        self.logits = logits

    def _rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1)


def lower(model: FoldedModel, path: Path) -> None:
    """ExecuTorch's own way from a torch module to a .pte."""
    import_module("executorch.kernels.quantized")
    import_module("executorch.extension.llm.custom_ops.custom_ops")
    import_module("torch.ao.quantization.fx._decomposed")
    exir = import_module("executorch.exir")
    passes = import_module("executorch.exir.passes")
    shapes = import_module("executorch.exir.passes.sym_shape_eval_pass")
    xnnpack = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    example = torch.zeros(1, 7, dtype=torch.long), torch.tensor([0])
    dynamic = ({1: torch.export.Dim("tokens", min=1, max=CONTEXT - 1)}, None)
    with torch.no_grad():
        exported = torch.export.export(Stock(model).eval(), example, dynamic_shapes=dynamic, strict=False)
    edge = exir.to_edge_transform_and_lower(
        exported,
        partitioner=[xnnpack.XnnpackDynamicallyQuantizedPartitioner()],
        constant_methods={"get_vocab_size": int(model.config["vocab_size"]), "get_max_context_len": CONTEXT},
        compile_config=exir.EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    program = edge.to_executorch(
        exir.ExecutorchBackendConfig(
            extract_delegate_segments=True,
            do_quant_fusion_and_const_prop=False,
            memory_planning_pass=passes.MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=True),
            sym_shape_eval_pass=shapes.ConstraintBasedSymShapeEvalPass(),
        )
    )
    with path.open("wb") as file:
        program.write_to_file(file)


if __name__ == "__main__":
    lower(first_layers(disk.read(Path(sys.argv[1])), int((sys.argv[3:] or ["0"])[0])), Path(sys.argv[2]))
