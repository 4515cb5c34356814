# SPDX-License-Identifier: Apache-2.0
"""Ways to multiply with integers in onnxruntime-web's WebAssembly: what the web form was chosen by (docs/adr/0006).

    python benchmarks/web_linears.py [--threads 1,2]

A chain of 40 layers, 576 -> 1536 -> 576 and so on (SmolLM2's MLP; 35 million weights, so that a weight is not in the
cache when its turn comes again), written once per encoding, all in one page of a headless Chromium. They take turns;
medians of the runs, microseconds per layer, one row (decode) and 128 rows (prefill).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import Results, lacks
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from playwright.sync_api import sync_playwright

from dlqat.devices.all import DEVICES
from dlqat.devices.web.browser_worker import Site
from dlqat.devices.web.chromium import FLAGS, environment, executable

LAYERS, WIDE, NARROW = 40, 1536, 576
PREFILL = 128
RUN = """async ({names, rows, width, rounds, threads}) => {
  const ort = await import("/ort/ort.wasm.min.mjs");
  const options = {executionProviders: ["wasm"], intraOpNumThreads: threads, logSeverityLevel: 4,
    extra: {session: {qdq_matmulnbits_accuracy_level: "0"}}};
  const sessions = {}, times = {}, load = {};
  for (const name of names) {
    const bytes = new Uint8Array(await (await fetch(`/model/${name}.onnx`)).arrayBuffer());
    const start = performance.now();
    sessions[name] = await ort.InferenceSession.create(bytes, options);
    load[name] = performance.now() - start;
    times[name] = [];
  }
  const x = Float32Array.from({length: rows * width}, (_, i) => Math.sin(i * 0.7) + 0.1 * Math.cos(i * 0.013));
  for (let round = 0; round <= rounds; round++)
    for (const name of round % 2 ? names : [...names].reverse()) {
      const start = performance.now();
      await sessions[name].run({x: new ort.Tensor("float32", x, [1, rows, width])});
      if (round) times[name].push(performance.now() - start);
    }
  for (const session of Object.values(sessions)) await session.release();
  return {times, load};
}"""


class Chain:
    """A program that multiplies LAYERS times; `weight` is drawn anew for each."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.random = np.random.default_rng(0)

    def op(self, kind: str, inputs: list[str], domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        made = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, array: NDArray[Any], kind: int | None = None) -> str:
        name = f"c{len(self.tensors)}"
        if kind == TensorProto.INT4:
            flat = array.astype(np.uint8).reshape(-1) & 15
            packed = (flat[0::2] | flat[1::2] << 4).tobytes()
            self.tensors.append(helper.make_tensor(name, kind, array.shape, packed, raw=True))
        else:
            self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def codes(self, k: int, n: int, bits: int = 4) -> NDArray[np.int8]:
        return self.random.integers(-(1 << bits - 1), 1 << bits - 1, (k, n)).astype(np.int8)

    def scales(self, *shape: int, bits: int = 4) -> NDArray[np.float32]:
        """Such that the values keep their size from layer to layer."""
        size = np.sqrt(3) / (1 << bits - 1) / np.sqrt(1000)
        return (size * self.random.uniform(0.8, 1.2, shape)).astype(np.float32)

    def save(self, path: Path, last: str) -> None:
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, None, NARROW]) for n in ("x", last))
        graph = helper.make_graph(self.nodes, "chain", [x], [y], self.tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))


Layer = Callable[[Chain, str, int, int], str]
"""(program, input, inputs, outputs) -> output."""


def nbits(bits: int, level: int, g: Chain, x: str, k: int, n: int) -> str:
    """MatMulNBits, blocks of 32."""
    codes = g.codes(k, n, bits).T.reshape(n, k // 32, 32).astype(np.uint8)
    packed = codes if bits == 8 else (codes[..., 0::2] & 15) | (codes[..., 1::2] & 15) << 4
    inputs = [x, g.constant(packed), g.constant(g.scales(n, k // 32, bits=bits))]
    return g.op(
        "MatMulNBits", inputs, "com.microsoft", K=k, N=n, bits=bits, block_size=32, accuracy_level=level
    )  # fmt: skip


def float_at_load(g: Chain, x: str, k: int, n: int) -> str:
    """4-bit codes of blocks of 32, which onnxruntime turns into float32 once, when it folds constants."""
    codes = g.op("Cast", [g.constant(g.codes(k, n), TensorProto.INT4)], to=TensorProto.FLOAT)
    blocks = g.op("Reshape", [codes, g.constant(np.array([k // 32, 32, n]))])
    dense = g.op("Mul", [blocks, g.constant(g.scales(k // 32, 1, n))])
    return g.op("MatMul", [x, g.op("Reshape", [dense, g.constant(np.array([k, n]))])])


def per_tensor(g: Chain, x: str, k: int, n: int) -> str:
    """What onnxruntime's quantize_dynamic writes: one uint8 grid for the whole input, one scale per column."""
    q, scale, zero = g.op("DynamicQuantizeLinear", [x], outputs=3)
    y = g.op("Cast", [g.op("MatMulInteger", [q, g.constant(g.codes(k, n)), zero])], to=TensorProto.FLOAT)
    return g.op("Mul", [y, g.op("Mul", [scale, g.constant(g.scales(n))])])


def rounded(g: Chain, x: str, *, signed: bool = False) -> tuple[str, str, list[str]]:
    """(codes, what one step of them is [.., 1], zero-point if not signed) of x rounded along its last axis."""
    top, most = g.op("ReduceMax", [g.op("Abs", [x]), g.constant(np.array([-1]))], keepdims=1), np.float32(127)
    step = g.op("Div", [top, g.constant(most)])
    steps = g.op("Round", [g.op("Mul", [x, g.op("Div", [g.constant(most), top])])])
    if signed:
        return g.op("Cast", [steps], to=TensorProto.INT8), step, []
    moved = g.op("Add", [steps, g.constant(np.float32(128))])
    return g.op("Cast", [moved], to=TensorProto.UINT8), step, [g.constant(np.array(128, np.uint8))]


def per_token(signed: bool, g: Chain, x: str, k: int, n: int) -> str:
    """One grid per row of the input, one scale per column: both leave the sum, which is an integer."""
    q, scale, zero = rounded(g, x, signed=signed)
    y = g.op("Cast", [g.op("MatMulInteger", [q, g.constant(g.codes(k, n)), *zero])], to=TensorProto.FLOAT)
    return g.op("Mul", [g.op("Mul", [y, scale]), g.constant(g.scales(n))])


def grouped(group: int, blocks: bool, g: Chain, x: str, k: int, n: int) -> str:
    """A scale per group of inputs: an integer sum for each, then a sum of floats. `blocks`: x is rounded in them, too."""
    shape, turn = [1, -1, k // group, group], {"perm": [2, 0, 1, 3]}
    if blocks:
        x = g.op("Reshape", [x, g.constant(np.array(shape))])
    q, step, zero = rounded(g, x)
    q = g.op("Transpose", [q if blocks else g.op("Reshape", [q, g.constant(np.array(shape))])], **turn)
    codes = g.constant(g.codes(k, n).reshape(k // group, 1, group, n))
    sums = g.op("Cast", [g.op("MatMulInteger", [q, codes, *zero])], to=TensorProto.FLOAT)
    parts = g.op("Mul", [sums, g.constant(g.scales(k // group, 1, 1, n))])
    parts = g.op("Mul", [parts, g.op("Transpose", [step], **turn)]) if blocks else parts
    y = g.op("ReduceSum", [parts, g.constant(np.array([0]))], keepdims=0)
    return y if blocks else g.op("Mul", [y, step])


LAYERS_OF: dict[str, Layer] = {
    "MatMulNBits 4 bit g32, level 0": partial(nbits, 4, 0),
    "MatMulNBits 4 bit g32, level 4": partial(nbits, 4, 4),
    "MatMulNBits 8 bit g32": partial(nbits, 8, 0),
    "float32 at load, from 4 bit g32": float_at_load,
    "int8 per column, uint8 per tensor": per_tensor,
    "int8 per column, uint8 per token": partial(per_token, False),
    "int8 per column, int8 per token": partial(per_token, True),
    "int8 g32, uint8 per token": partial(grouped, 32, False),
    "int8 g32, uint8 in blocks of 32": partial(grouped, 32, True),
    "int8 g64, uint8 in blocks of 64": partial(grouped, 64, True),
}


def write(folder: Path) -> dict[str, str]:
    """The programs; file stem -> what it is."""
    names: dict[str, str] = {}
    for i, (name, layer) in enumerate(LAYERS_OF.items()):
        chain, x = Chain(), "x"
        for at in range(LAYERS):
            x = layer(chain, x, *((NARROW, WIDE) if at % 2 == 0 else (WIDE, NARROW)))
        chain.save(folder / f"m{i}.onnx", x)
        names[f"m{i}"] = name
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for name in ("browser-wasm", "browser-wasm-threads"):
        if (reason := DEVICES[name].available()) is not None:
            lacks(f"{name}: {reason}")
    results = Results("web_linears")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        names = write(Path(folder))
        site = Site()
        site.roots["model"] = Path(folder)
        browser: Any = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS), env=environment())
        for threads in map(int, options.threads.split(",")):
            for rows in (1, PREFILL):
                page: Any = browser.new_page()
                page.set_default_timeout(0)
                page.goto(f"http://127.0.0.1:{site.server_port}/index.html?provider=wasm&threads={threads}")
                page.wait_for_function("window.ready === true")
                given = {"names": list(names), "rows": rows, "width": NARROW, "threads": threads}
                found = page.evaluate(RUN, {**given, "rounds": options.rounds if rows == 1 else 3})
                page.close()
                for stem, name in names.items():
                    us = 1000 * float(np.median(found["times"][stem])) / LAYERS
                    row = {"us_per_layer": round(us, 1), "load_ms": round(found["load"][stem])}
                    results.add(f"{name}, {threads} threads, {rows} rows", row)
                    print(f"{name}, {threads} threads, {rows} rows", row, flush=True)
        browser.close()


if __name__ == "__main__":
    main()
