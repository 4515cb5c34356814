# SPDX-License-Identifier: Apache-2.0
"""README.md of an artifact as the Hugging Face hub shows it, made from manifest.json, report.json and eval-DEVICE.json.

It says what was checked and what was not, in the words of the report, and nothing of the machine's folders.
Front matter: huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dlqat import badge, first_lines
from dlqat.visible import markdown

HUB = re.compile(r"[\w.-]+/[\w.-]+")


def card(
    name: str, manifest: Mapping[str, Any], report: Mapping[str, Any], evals: Sequence[Mapping[str, Any]], licence: str
) -> str:
    """The whole file. `name`: org/name of the hub; `licence`: of the base model, "" where it is not known."""
    target, form = str(manifest["target"]), str(manifest["form"])
    lines = [
        *_front(manifest, target, licence),
        "",
        f"# {markdown(name.partition('/')[2])}",
        "",
        f"![{badge.LABEL}: {badge.said(report)[0]}]({badge.NAME})",
        "",
        "The integers in these files are the ones that were trained: [dlqat](https://pypi.org/project/dlqat/) fine-tuned the",
        "model on its integer grid and wrote it without rounding it again. `manifest.json` has the digest of every file.",
        "",
        f"- Target: {target}, form {form}.",
        f"- Size: {manifest['bytes']['total'] / 1e6:.1f} MB, {manifest['bits_per_weight']} bits a weight.",
        *(f"- {spec['layers']} layers: {markdown(str(spec['grid']))}" for spec in manifest["specs"]),
        f"- Context: {manifest.get('context', 'not stated')} tokens.",
        *([] if licence else ["- Licence: that of the base model, which was not found; add `license:` above."]),
        "",
        "## Use",
        "",
        f"```{first_lines.language(target, form)}",
        first_lines.of(target, form, name),
        "```",
        "",
        *(f"- {client}: {markdown(str(state))}" for client, state in manifest.get("clients", {}).items()),
        "",
        *_checks(report),
        *(line for found in evals for line in _accuracy(found)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _front(manifest: Mapping[str, Any], target: str, licence: str) -> Iterator[str]:
    base = str(manifest["source"].get("name") or "")
    bits = sorted({int(spec["bits"]) for spec in manifest["specs"]})
    yield "---"
    if licence:
        yield f"license: {licence}"
    if HUB.fullmatch(base):
        yield f"base_model: {base}"
        yield "base_model_relation: quantized"
    yield "pipeline_tag: text-generation"
    yield f"library_name: {target}"
    yield "tags:"
    for tag in ("dlqat", "quantized", target, *(f"{b}-bit" for b in bits)):
        yield f"- {tag}"
    yield "---"


def _checks(report: Mapping[str, Any]) -> Iterator[str]:
    versions = report["versions"]
    yield "## What was checked"
    yield ""
    yield f"By dlqat-check {versions.get('dlqat', '')} on the device `{report['device']}`: {report['verdict']}."
    yield ""
    yield from _table(
        ("rung", "check", "status", "result"),
        ([c[k] for k in ("rung", "name", "status", "summary")] for c in report["checks"]),
    )
    yield ""


def _accuracy(found: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (task, metric, *(f"{100 * values[who]['value']:.1f} %" for who in ("artifact", "reference") if who in values))
        for task, metrics in found["tasks"].items()
        for metric, values in metrics.items()
    ]
    if rows:
        yield f"## Accuracy on `{found['device']}`"
        yield ""
        yield from _table(("task", "metric", "this file", "PyTorch, same integers")[: len(rows[0])], rows)
        yield ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(markdown(str(cell)) for cell in row)} |"
