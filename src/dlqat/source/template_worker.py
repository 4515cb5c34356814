# SPDX-License-Identifier: Apache-2.0
"""The process in which chat templates are rendered: requests as JSON lines on stdin, answers on stdout.

A template is a program of whoever made the model. It may loop for ever or ask for more memory than there is, inside one
call that nothing in the same process can end. chat_template.py starts this file by its path, without our packages, and
ends the process when it takes too long; what it may use of memory is limited here.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


def limit(more: int) -> None:
    """No more than `more` bytes of memory beyond what is in use."""
    with contextlib.suppress(OSError, ValueError):  # a system without /proc, or without this limit
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The text of one conversation and, where they are asked for, the spans of what the assistant says in it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            [request["messages"]],
            tools=request["tools"],
            chat_template=request["template"],
            add_generation_prompt=request["prompt"],
            return_assistant_tokens_mask=request["marked"],
            **request["variables"],
        )
        if len(texts[0]) > request["most"]:
            return {"error": f"it writes {len(texts[0]):,} characters"}
        return {"text": texts[0], "spans": spans[0] if request["marked"] else []}
    except Exception as error:  # noqa: BLE001 a template raises what it likes
        kind = type(error).__name__  # a bare TemplateError is what the template itself says
        return {"error": (str(error) if kind == "TemplateError" else f"{kind}: {error}")[:500]}


def main() -> None:
    """Answer until the other side closes the stream; what a library prints goes to stderr."""
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    nothing = {"messages": [], "tools": None, "template": "", "prompt": False, "marked": False, "variables": {}}
    sink.write(json.dumps(answer({**nothing, "most": 1})) + "\n")  # everything is imported: from here on time counts
    sink.flush()
    limit(int(sys.argv[1]))
    for line in sys.stdin:
        sink.write(json.dumps(answer(json.loads(line))) + "\n")
        sink.flush()


if __name__ == "__main__":
    main()
