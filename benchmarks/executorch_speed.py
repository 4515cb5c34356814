# SPDX-License-Identifier: Apache-2.0
"""Our .pte beside ExecuTorch's own recipe for the same integers and beside our ONNX artifact: time, memory, bytes.

    python benchmarks/executorch_speed.py --folded model_dir/folded [--layers 4] [--threads 1] [--no-stock]

The recipe is int4 groups of 32 with int8 dynamic activations (torchao), int8 embedding and head, static cache with
llama::update_cache and custom_sdpa, torch.export, to_edge_transform_and_lower with XNNPACK's partitioner for
dynamically quantized linears. Its lowering takes minutes a model, hence --layers: the first layers of the model, for
all contestants alike. Models take turns in one process (onnx_speed.race); on one thread CPU time is what counts. Load
time and memory are those of a process of its own, memory after a prefill of 256 tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from _common import Results
from onnx_speed import PROMPT, Genai, race
from torch import Tensor, nn
from torch.nn import functional as F

from dlqat import architecture, checkpoint
from dlqat.checkpoint import FoldedModel
from dlqat.devices.device import Setting
from dlqat.devices.host_executorch import HostExecutorch
from dlqat.exporters import cli, decoder, executorch_target, onnx_target
from dlqat.exporters.builder import Attention, Linear
from dlqat.exporters.target import Options, Target
from dlqat.folded import Quantized

CONTEXT = 512
STOCK = "stock recipe"


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


class Pte:
    """A .pte that generates greedily; every call makes one token."""

    def __init__(self, path: Path, threads: int) -> None:
        self.session = HostExecutorch().open(path, Setting("int8", threads=threads, generate=True))

    def prefill(self) -> None:
        self.session.reset()
        self.token = int(self.session.logits(PROMPT)[-1].argmax())

    def decode(self) -> None:
        self.token = int(self.session.logits([self.token])[-1].argmax())


def timed(name: str, work: Any) -> float:
    """Seconds of CPU time, which a busy machine does not stretch much."""
    began, wall = time.process_time(), time.perf_counter()
    work()
    spent = time.process_time() - began
    print(
        f"{name}: written in {spent:.0f} s of CPU time, {time.perf_counter() - wall:.0f} s on this machine", flush=True
    )
    return spent


def alone(path: Path, threads: int) -> dict[str, float]:
    """Load time and resident memory of a process that runs this model only."""
    words = [sys.executable, __file__, "--alone", str(path), "--threads", str(threads)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def report_alone(path: Path, threads: int) -> None:
    """What `alone` reads: memory above that of a process which has only loaded the runtime."""
    if path.is_dir():
        import onnxruntime_genai  # noqa: F401
    else:
        HostExecutorch().available()
        import_module("executorch.kernels.quantized")
        import_module("executorch.extension.llm.custom_ops.custom_ops")
    before, began = resident(), time.process_time()
    model = Genai(path, threads, len(PROMPT) + 72) if path.is_dir() else Pte(path, threads)
    load = time.process_time() - began
    model.prefill()
    print(json.dumps({"load_cpu_s": round(load, 3), "rss_mb": round(resident() - before)}))


def resident() -> float:
    """MB of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folded", type=Path)
    parser.add_argument("--layers", type=int, default=0, help="only the first layers; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        report_alone(options.alone, options.threads)
        return
    model = first_layers(checkpoint.read(options.folded), options.layers)
    results = Results("executorch_speed")
    with tempfile.TemporaryDirectory() as name:
        home, written, paths = Path(name), dict[str, float](), dict[str, Path]()

        def ours(target: Target, form: str) -> Any:
            return lambda: cli.write(target, model, options.folded, home / form, Options(form, CONTEXT))

        written["dlqat executorch"] = timed("dlqat executorch", ours(executorch_target, "xnnpack"))
        paths["dlqat executorch"] = home / "xnnpack" / "model.pte"
        written["dlqat onnx ort"] = timed("dlqat onnx ort", ours(onnx_target, "ort"))
        paths["dlqat onnx ort"] = home / "ort"
        if not options.no_stock:
            written[STOCK] = timed(STOCK, lambda: lower(model, home / "stock.pte"))
            paths[STOCK] = home / "stock.pte"
        models = {
            n: Genai(p, options.threads, len(PROMPT) + 72) if p.is_dir() else Pte(p, options.threads)
            for n, p in paths.items()
        }
        times = race(models, 64, options.rounds, time.process_time if options.threads == 1 else time.perf_counter)
        base = times.get(STOCK, times["dlqat onnx ort"])
        for contestant, row in times.items():
            path = paths[contestant]
            files = [path] if path.is_file() else list(path.rglob("model.onnx*"))
            found = {k: round(v, 2) for k, v in row.items()}
            found |= {f"{p}_ratio": round(base[f"{p}_ms"] / row[f"{p}_ms"], 3) for p in ("prefill", "decode")}
            found |= {
                "ratio_to": STOCK if STOCK in times else "dlqat onnx ort",
                "export_cpu_s": round(written[contestant], 1),
            }
            found |= {"mb": round(sum(p.stat().st_size for p in files) / 1e6, 1), **alone(path, options.threads)}
            depth = f"{options.layers} layers" if options.layers else "all layers"
            results.add(f"{contestant}, {depth}, {options.threads} thread", found)
            print(contestant, found, flush=True)


if __name__ == "__main__":
    main()
