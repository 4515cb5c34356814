# SPDX-License-Identifier: Apache-2.0
"""L0: the artifact's files, its integers and the reference's, each equal to what it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import torch

from dlqat import artifact as artifacts
from dlqat import atomic, folded
from dlqat.folded import Folded, Quantized
from dlqat.runtime_tests import readers
from dlqat.runtime_tests.check import client_files as read_by_clients
from dlqat.runtime_tests.check import inside as carried
from dlqat.runtime_tests.check import integers
from dlqat.runtime_tests.check.proof import Proof, judged
from dlqat.runtime_tests.report.record import Check
from dlqat.tensor_writer import blocks


def files(proof: Proof) -> Iterator[Check]:
    """L0: every file is the one that manifest.json describes."""
    listed = proof.artifact.manifest.files
    if not listed:
        yield Check("L0", "files", "not verified", "there is no manifest.json with checksums beside the program")
        return
    damage = list(artifacts.damage(proof.artifact))
    folder, made_from = proof.reference.folder, proof.artifact.manifest.source.folded
    other = [n for n, digest in made_from.items() if not (folder / n).is_file() or atomic.sha256(folder / n) != digest]
    doubts = [f"made from another {folder.name}/ ({other[0]} differs); export again after folding"] if other else []
    yield judged(
        "L0",
        "files",
        damage,
        f"{len(listed)} files have the checksums of manifest.json",
        {"files": len(listed), "manifest_sha256": atomic.sha256(proof.artifact.folder / artifacts.MANIFEST)},
        doubts,
    )


def client_files(proof: Proof) -> Iterator[Check]:
    """L0: tokenizer, template and settings that clients read are those of folded/."""
    if (inside := proof.contents.inside) is not None:
        size, context = proof.reference.vocab_size, proof.artifact.manifest.context
        wrong = [*carried.differences(inside, proof.reference.folder, size, context), *_app(proof)]
        good = f"tokenizer, template and ids in {proof.artifact.program.name} mean what folded/ means"
        yield judged("L0", "client files", wrong, good, {})
        return
    places, shared = (proof.artifact.folder, proof.reference.folder), proof.contents.form == "ort"
    wrong = [*read_by_clients.differences(*places, proof.artifact.manifest.context, shared=shared), *_app(proof)]
    yield judged("L0", "client files", wrong, "tokenizer, templates and settings mean what folded/ means", {})


def _app(proof: Proof) -> Iterator[str]:
    return read_by_clients.app(proof.artifact.folder, proof.reference.folder, proof.artifact.manifest)


def integers_equal(proof: Proof) -> Iterator[Check]:
    """L0: codes, scales, zero-points, labels and float parameters of each program are those of folded/."""
    for program in proof.artifact.programs:
        contents = proof.contents if program == proof.artifact.program else readers.read(program)
        result = integers.compare(contents, proof.wanted, proof.progress, proof.positions)
        figures = {k: v for k, v in asdict(result).items() if k != "differences"} | {
            "form": contents.form,
            **_bits(proof),
        }
        good = (
            f"{result.codes:,} codes, {result.scales:,} scales, {result.zero_points:,} zero-points and "
            f"{result.floats:,} float parameters equal, bit for bit, in {result.weights} multiplications; {result.facts:,} "
            "numbers of norms, attention and rotary positions as config.json means them"
        )
        yield judged("L0", f"integers of {program.name}", [str(d) for d in result.differences], good, figures)


def _bits(proof: Proof) -> dict[str, int]:
    """Bits that most layers were trained with, as far as folded/ says."""
    found = Counter(spec.bits for spec in proof.reference.model.specs.values()).most_common(1)
    return {"bits": found[0][0]} if found else {}


def reference_equal(proof: Proof) -> Iterator[Check]:
    """L0: what transformers multiplies with is what the integers mean (law 3, on this very folder)."""
    model = proof.reference.model
    wrong: list[str] = []
    pruned = 0
    for name in model.layers:
        proof.progress(name)
        layer = model.layers[name]
        pruned += sum(_half_zero(leaf) for _, leaf in folded.leaves(layer, name))
        with proof.reference.weight(name) as weight:
            same = _same(weight, layer)
        if not same:
            wrong.append(f"{name}: transformers has another weight than its integers mean")
    if pruned:
        proof.facts["zeros"] = _zeros(pruned, sum("mask" in w.stored for w in proof.contents.weights))
    yield judged("L0", "reference", wrong, f"transformers holds the same {len(model.layers)} weights, bit for bit", {})


def _same(weight: torch.Tensor, layer: Folded) -> bool:
    """Whether `weight` is what the integers mean; some rows at a time, where rows can be had."""
    if not isinstance(layer, Quantized):
        return torch.equal(weight.float(), folded.dense(layer))
    parts = blocks(*layer.codes.shape)
    return weight.shape == layer.codes.shape and all(
        torch.equal(weight[part].float(), folded.dense(folded.rows(layer, part))) for part in parts
    )


def _zeros(pruned: int, masked: int) -> str:
    """What the zeros of pruned weights bring in this artifact."""
    if not masked:
        return f"{pruned} weights are half zeros or more, stored as codes: no smaller and no faster for it"
    return (
        f"{pruned} weights are half zeros or more; {masked} of them stored as a mask and the codes that are left: "
        "smaller for it; whether faster, only the device itself can tell"
    )


def _half_zero(leaf: Quantized) -> bool:
    """Whether at least half of a weight is zero (N:M pruning, or very few bits)."""
    codes = leaf.codes
    if leaf.zero_points is not None:
        codes = codes.view(*leaf.zero_points.shape, -1) - leaf.zero_points[..., None]
    return int(codes.count_nonzero()) * 2 <= codes.numel()
