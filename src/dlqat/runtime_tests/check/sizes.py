# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of an artifact are: integers, scales, embedding, head, and the rest."""

from __future__ import annotations

from dlqat.artifact import Artifact
from dlqat.runtime_tests.check import integers
from dlqat.runtime_tests.check.proof import Proof
from dlqat.runtime_tests.readers.contents import Unreadable


def by_component(proof: Proof) -> dict[str, int]:
    """Bytes of all program files; "rest" is what no weight claims. Empty if the program cannot be read."""
    try:
        contents = proof.contents
    except Unreadable:
        return {}
    found = {"codes of linears": 0, "scales and zero-points": 0, "embedding and head": 0}
    seen: set[tuple[str, int]] = set()
    for weight in contents.weights:
        outer = weight.kind == "gather" or weight.name == integers.HEAD
        for what, span in weight.spans.items():
            place = (str(span.file), span.offset)
            if place not in seen:  # a tied head shares the embedding's bytes
                seen.add(place)
                inner = "codes of linears" if what == "codes" else "scales and zero-points"
                found["embedding and head" if outer else inner] += span.length
    return found | {"graph, tables and the rest": max(0, total(proof.artifact) - sum(found.values()))}


def total(artifact: Artifact) -> int:
    """Bytes of the programs with the files beside them that belong to them (.onnx.data, packages)."""
    files = {
        f
        for program in artifact.programs
        for path in program.parent.glob(f"{program.stem}*")
        for f in (path.rglob("*") if path.is_dir() else (path,))
        if f.is_file() and f.suffix != ".json"
    }
    return sum(f.stat().st_size for f in files)
