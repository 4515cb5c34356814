# SPDX-License-Identifier: Apache-2.0
"""What react-native-executorch's native LLM runner does, on executorch's own forward and C++ tokenizer, one JSON line a call.

runner.py MODEL TOKENIZER IN OUT       {"op": "prefill" | "generate" | "reset", ...} -> {"pos": ..., "context": ..., ...}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401 registers operators
from executorch.kernels import quantized  # noqa: F401 the same
from executorch.runtime import Runtime
from pytorch_tokenizers import CppHFTokenizer


class Runner:
    """One program with its cache."""

    def __init__(self, model: str, tokenizer: str) -> None:
        program = Runtime.get().load_program(Path(model))
        self.forward, self.position = program.load_method("forward"), 0
        self.context = int(program.load_method("get_max_context_len").execute([])[0])
        self.ends = {int(x) for x in program.load_method("get_eos_ids").execute([])}
        self.tokenizer = CppHFTokenizer()
        self.tokenizer.load(tokenizer)

    def step(self, ids: list[int]) -> int:
        if self.position + len(ids) > self.context:
            raise ValueError(f"{self.position} + {len(ids)} tokens, and the context is {self.context}")
        logits = self.forward.execute([torch.tensor([ids]), torch.tensor([self.position])])[0]
        self.position += len(ids)
        return int(logits.flatten().argmax())

    def piece(self, last: int, token: int) -> str:
        """A token that ends inside a letter is bytes to C++, and an error to its Python binding."""
        try:
            return self.tokenizer.decode(last, token)
        except UnicodeDecodeError:
            return "\ufffd"

    def on_prefill(self, text: str) -> dict[str, Any]:
        if ids := self.tokenizer.encode(text, 0, 0):
            self.step([int(i) for i in ids])
        return {}

    def on_generate(self, text: str, most: int) -> dict[str, Any]:
        ids, said = [int(i) for i in self.tokenizer.encode(text, 0, 0)], []
        last, token = ids[-1], self.step(ids)
        while True:
            said.append(self.piece(last, token))
            if token in self.ends or len(said) >= most or self.position >= self.context:
                return {"tokens": said}
            last, token = token, self.step([token])

    def on_reset(self, pos: int) -> dict[str, Any]:
        self.position = pos
        return {}


def main() -> None:
    model, tokenizer, orders, answers = sys.argv[1:]
    with Path(answers).open("w", encoding="utf-8") as sink, Path(orders).open(encoding="utf-8") as source:
        runner = Runner(model, tokenizer)
        for line in source:
            message = json.loads(line)
            try:
                answer = getattr(runner, f"on_{message.pop('op')}")(**message)
                answer |= {"pos": runner.position, "context": runner.context}
            except Exception as error:  # noqa: BLE001 the app shows it
                answer = {"error": str(error)}
            sink.write(json.dumps(answer) + "\n")
            sink.flush()


if __name__ == "__main__":
    main()
