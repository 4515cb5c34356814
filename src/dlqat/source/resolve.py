# SPDX-License-Identifier: Apache-2.0
"""Where a float model comes from: a Hugging Face folder, a hub id, or a .gguf file.

`resolve` answers every question that headers can answer (which architecture, is every tensor there
and of the right shape) and refuses before a weight is read (but for a head that may not be the tied one); from the hub, an unknown architecture is
refused before a weight is downloaded. After it the bytes are on this machine and all three kinds are
used alike: one parameter at a time with `weights` (fold; models larger than memory), the whole model
with `load` (training). `load` is built from `weights`, so that the two cannot differ. Nothing in a
model can run code: safetensors and GGUF only, no pickle, and one door to transformers (pretrained.py).
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import constants, snapshot_download
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlqat import architecture, atomic, plain_file, tensor_file
from dlqat.architecture import Config, Decoder
from dlqat.folded import disk
from dlqat.quiet import quiet
from dlqat.refusal import Refusal
from dlqat.source import float_model, gguf_file, gguf_model, hf_folder, peft_adapter, pretrained, sidecar
from dlqat.source.float_model import FloatModel


@dataclass(frozen=True, eq=False)
class Source:
    """A model whose bytes are on this machine and whose headers were found right."""

    text: str
    """`resolve` gives the same source for it again: an absolute path, or org/name@commit."""
    path: Path
    """The folder or the .gguf file."""
    decoder: Decoder
    stored: FloatModel
    adapter: Path | None = None
    """A PEFT adapter that is merged into the model in `path`; `text` names it then."""
    text_only: bool = False
    """Whether it is the language part of what is in `path`."""

    @property
    def config(self) -> Config:
        """The complete config.json."""
        return self.stored.config

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer lies, if it is a folder."""
        return peft_adapter.tokenizer_folder(self.adapter, self.path) if self.adapter else self.path


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory, on the CPU, in the stored dtype (GGUF: float32), in eval mode, and its tokenizer."""

    source: Source
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def files(self, target: Path) -> None:
        """Write tokenizer, chat template and generation_config.json into the folder `target`, where
        folded.disk.copy_tokenizer finds them: a folder's own files byte for byte; what had no tokenizer.json, converted."""
        target.mkdir(parents=True, exist_ok=True)
        if self.source.path.is_dir():
            place = self.source.tokenizer_folder
            disk.copy_tokenizer(place, target)
            if place != self.source.path and not (place / "generation_config.json").is_file():
                disk.copy_generation(self.source.path, target)
        if not (target / "tokenizer.json").is_file():
            self.tokenizer.save_pretrained(target)
        if not (target / "generation_config.json").is_file():
            assert self.model.generation_config is not None
            self.model.generation_config.save_pretrained(target)


def resolve(text: str, base: str | None = None, *, text_only: bool = False) -> Source:
    """Find and check the model that `text` names: the path of a folder or of a .gguf file, or, if no such
    path exists, org/name[@revision] of the hub (the only case in which the network is used). A PEFT adapter is merged into
    the folder `base`, or the one that it names itself. `text_only`: the language part of a model with others.

    Refusal: nothing there, an unknown architecture, pickled, quantized or damaged weights, a tensor too
    many or too few."""
    path = Path(text).expanduser()
    if path.exists():  # of a file its own name: in the hub's cache it is a link to one without a suffix
        text = str(path.parent.resolve() / path.name if path.is_file() else path.resolve())
    elif match := re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", text):
        path = _download(match[1], match[2], text_only=text_only)
        text = f"{match[1]}@{path.name}"
    else:
        raise Refusal(f"{text} does not exist, and it is not a hub id (org/name)")
    if not path.is_dir() and (reason := plain_file.fault(path)) is not None:
        raise Refusal(f"{path} {reason}")
    if path.is_file() and path.suffix != ".gguf" and not gguf_file.is_gguf(path):
        raise Refusal(f"{path} is neither a folder nor a .gguf file")
    adapter = path if path.is_dir() and peft_adapter.is_adapter(path) else None
    if text_only and (adapter is not None or not path.is_dir()):
        raise Refusal(f"{path} is not a folder of a model with several parts; leave --text-only out")
    if adapter is not None:
        path = peft_adapter.base_of(adapter, base).resolve()
        found = float_model.as_stored(peft_adapter.merge(adapter, path))
    elif base is not None:
        raise Refusal(f"{text} is not a PEFT adapter, so it has no other base; leave --base {base} out")
    else:
        folder = path.is_dir()
        found = hf_folder.open_folder(path, text_only=text_only) if folder else gguf_model.open_file(path)
        found = float_model.as_stored(found)
    float_model.check(found, str(path))
    return Source(text, path, architecture.read(found.config), found, adapter, text_only)


def weights(source: Source) -> Mapping[str, Tensor]:
    """Parameter name as in transformers' state_dict -> values [shape of the module], read when asked for.
    A tied lm_head is not among them. Refusal on reading a tensor that holds NaN or infinity."""

    def read(name: str) -> Tensor:
        value = source.stored.tensor(name)
        if not tensor_file.finite(value):
            raise Refusal(f"{source.path}: tensor {name} holds NaN or infinity")
        return value

    unused = (float_model.HEAD,) if source.decoder.tied else ()
    return disk.Lazy([n for n in source.stored.shapes if n not in unused and "rotary_emb" not in n], read)


def load(source: Source) -> Loaded:
    """The whole model and its tokenizer. Refusal, before a weight is read, if the tokenizer is missing or damaged."""
    folder = source.path.is_dir()
    tokenizer = _tokenizer(source.tokenizer_folder) if folder else sidecar.gguf_tokenizer(source.path)
    generation = sidecar.generation(source.path) if folder else None
    with quiet():
        model = pretrained.model_of(source.config, weights(source), source.stored.dtype)
    if generation is not None:
        model.generation_config = generation
    model.config.name_or_path = ""
    return Loaded(source, model, tokenizer)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; of an adapter's without the adapter, which transformers would load as well."""
    if not peft_adapter.is_adapter(folder):
        return sidecar.tokenizer(folder)
    with TemporaryDirectory() as alone:
        disk.copy_tokenizer(folder, Path(alone))
        try:
            found = sidecar.tokenizer(Path(alone))
        except Refusal as reason:
            raise Refusal(str(reason).replace(alone, str(folder))) from reason
    found.name_or_path = str(folder)
    return found


def fingerprint(source: Source) -> str:
    """sha256 over the sha256 of config.json and every weight file, whatever the files are called.

    Whole contents, not names and sizes: a model that was trained a little further has the same sizes and
    headers, and to fold adapters onto it is just the mistake this is to catch. About 1.5 GB/s per core."""
    with ThreadPoolExecutor() as pool:
        digests = sorted(pool.map(atomic.sha256, source.stored.files))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _download(name: str, revision: str | None, *, text_only: bool) -> Path:
    """The snapshot folder of a hub model: its config first, and the rest only if we know the architecture."""
    tokenizer = [*disk.TOKENIZER_FILES, disk.MORE_TEMPLATES]
    try:
        fetch = partial(snapshot_download, name, local_files_only=constants.HF_HUB_OFFLINE)  # 1.33 asks all the same
        folder = Path(fetch(revision=revision, allow_patterns=["config.json"]))
        float_model.complete(hf_folder.config(folder, text_only=text_only), torch.float32)
        pretrained.look(folder)
        wanted = ["config.json", hf_folder.SINGLE, hf_folder.INDEX, *tokenizer]
        fetch(revision=folder.name, allow_patterns=wanted)
        shards = [glob.escape(shard) for shard in hf_folder.shards(folder)]  # under whatever names
        return Path(fetch(revision=folder.name, allow_patterns=[*wanted, *shards]))
    except Refusal:
        raise
    except Exception as error:  # the hub, httpx and the cache raise unrelated classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refusal(f"{name} is not a path here and cannot be had from the hub: {reason}") from error
