# SPDX-License-Identifier: Apache-2.0
"""A Setting as SessionOptions of onnxruntime, and the options that apps choose.

A setting's own options are entries of the session's configuration by their names, but for three that are attributes
(ATTRIBUTES), and for FORMAT: the graph is first written in onnxruntime's own format, as builds without an ONNX parser
load it, and that file is run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlqat.devices.device import DeviceFailure, Setting

ACCURACY_LEVEL = {"float": 0, "int8": 4}
ARENA, PATTERN, MODE = "enable_cpu_mem_arena", "enable_mem_pattern", "execution_mode"
FORMAT = ("save_model_format", "ORT")
OF_THE_SESSION: tuple[Mapping[str, str], ...] = (
    {ARENA: "0"},
    {PATTERN: "0"},
    {MODE: "parallel"},
    {"session.use_device_allocator_for_initializers": "1"},
)
"""What apps set to save memory (no arena, no planned memory) or time (branches at the same time)."""
APPS: tuple[Mapping[str, str], ...] = (*OF_THE_SESSION, dict([FORMAT]))


def session_options(setting: Setting) -> Any:
    """onnxruntime.SessionOptions."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if setting.optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors reach the user as DeviceFailure, once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may need the cores
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(ACCURACY_LEVEL[setting.activations]))
    for key, value in setting.options:
        match key:
            case "enable_cpu_mem_arena" | "enable_mem_pattern":
                setattr(options, key, value == "1")
            case "execution_mode":
                options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
                options.inter_op_num_threads = 2
            case "save_model_format":
                pass
            case _:
                options.add_session_config_entry(key, value)
    return options


def load(model: str | bytes, setting: Setting, options: Any) -> Any:
    """An InferenceSession of a file's path or a model's bytes. DeviceFailure if onnxruntime refuses it."""
    import onnxruntime as ort

    providers = ["CPUExecutionProvider"]
    try:
        if FORMAT not in setting.options:
            return ort.InferenceSession(model, options, providers=providers)
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "model.ort")
            options.add_session_config_entry("session.save_model_format", "ORT")
            ort.InferenceSession(model, options, providers=providers)
            return ort.InferenceSession(options.optimized_model_filepath, session_options(setting), providers=providers)
    except Exception as error:  # onnxruntime has a dozen exception types without a common base
        raise DeviceFailure(f"onnxruntime does not load it: {line(error)}") from error


def line(error: Exception) -> str:
    """An exception of onnxruntime as one line."""
    return " ".join(str(error).split())[:400]
