# SPDX-License-Identifier: Apache-2.0
"""dlqat-train: fine-tune a model on the integers that will ship."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dlqat import refusal
from dlqat.refusal import Refusal
from dlqat.terminal import Terminal, starting
from dlqat.trainer.options import DLQAT, OTHER_NAMES, START, STARTS, TWO_BITS, Options

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
_DEFAULT = Options()
WHAT, HOW, RUN = "What becomes of the weights", "How it is trained", "Running"


@app.command(no_args_is_help=True)
def train(
    model: Annotated[
        str, typer.Argument(help="A Hugging Face folder, a hub id (org/name), a .gguf file or a PEFT adapter.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="model_dir; the same command continues it.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            help="self | .txt | .jsonl | .json | .csv | .parquet | a folder of them | hub dataset; may be repeated.",
        ),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(help="Jinja template for a model without one, or in place of its own; ships with the model."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder of a PEFT adapter's base model, if it is not where adapter_config.json says."),
    ] = None,
    text_only: Annotated[
        bool,
        typer.Option("--text-only", help="Take the language part of a model that sees or hears as well."),
    ] = False,
    method: Annotated[
        str,
        typer.Option(
            help=f"dlqat | {' | '.join([*STARTS, *OTHER_NAMES])}. Another than dlqat: --init of it, and nothing then.",
            rich_help_panel=WHAT,
        ),
    ] = DLQAT,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the start (docs/methods.md); may be repeated.", rich_help_panel=WHAT),
    ] = None,
    then: Annotated[
        str,
        typer.Option(
            help="What follows the start: dlqat (trains its factors and centroids too) | nothing.", rich_help_panel=WHAT
        ),
    ] = "",
    bits: Annotated[int, typer.Option(help="2, 3, 4, 5 or 8.", rich_help_panel=WHAT)] = 4,
    group_size: Annotated[
        int, typer.Option(help="Inputs per scale: 16, 32, 64, 128; 0: per channel.", rich_help_panel=WHAT)
    ] = 32,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Integer zero-points (not on ExecuTorch).", rich_help_panel=WHAT)
    ] = False,
    activations: Annotated[
        bool,
        typer.Option(help="Train with the int8 per-token activations of XNNPACK.", rich_help_panel=WHAT),
    ] = True,
    recipe_file: Annotated[
        Path | None,
        typer.Option(
            "--recipe", help=r"TOML with [\[rule]] tables, applied after the options above.", rich_help_panel=WHAT
        ),
    ] = None,
    rank: Annotated[
        int, typer.Option(help="LoRA rank, at most the layer's own; 0: no LoRA (PEQA).", rich_help_panel=WHAT)
    ] = 16,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha; default: the rank.", rich_help_panel=WHAT)] = None,
    magnitude: Annotated[
        bool, typer.Option(help="One trained magnitude per group (off: FQ_LORA).", rich_help_panel=WHAT)
    ] = True,
    train_scales: Annotated[
        bool, typer.Option("--train-scales", help="Train the scales too (L4Q).", rich_help_panel=WHAT)
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(
            help=f"Start: {' | '.join(STARTS)}. Default: {START}; {TWO_BITS} if a layer has 2 bits.",
            rich_help_panel=HOW,
        ),
    ] = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of the data that the start sees. Default: as many as it asks for.", rich_help_panel=HOW
        ),
    ] = _DEFAULT.calibration_tokens,
    steps: Annotated[
        int | None,
        typer.Option(
            help=f"Optimizer steps; 0: the start is the result. Default: {_DEFAULT.steps}.", rich_help_panel=HOW
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data, in place of --steps.", rich_help_panel=HOW)
    ] = _DEFAULT.epochs,
    batch_size: Annotated[
        int, typer.Option(help="Sequences per step, over all processes.", rich_help_panel=HOW)
    ] = _DEFAULT.batch_size,
    micro_batch: Annotated[
        int, typer.Option(help="Sequences at a time (gradient accumulation); 0: all.", rich_help_panel=HOW)
    ] = _DEFAULT.micro_batch,
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", "--max-length", help="Tokens.", rich_help_panel=HOW)
    ] = _DEFAULT.sequence_length,
    kd: Annotated[
        float | None,
        typer.Option(help="Weight of KL to the float model: stay near it. Default: 1.", rich_help_panel=HOW),
    ] = _DEFAULT.kd,
    ce: Annotated[
        float | None,
        typer.Option(
            help="Weight of cross entropy: learn the data. Default: 1 for data with answers (chats, prompts), else 0.",
            rich_help_panel=HOW,
        ),
    ] = _DEFAULT.ce,
    block_distance: Annotated[
        float | None,
        typer.Option(
            help="Weight of every block's distance to the float model's. Default: by its bits where KL is the whole loss, else 0.",
            rich_help_panel=HOW,
        ),
    ] = _DEFAULT.block_distance,
    lr: Annotated[
        float, typer.Option("--lr", "--learning-rate", help="Learning rate of LoRA.", rich_help_panel=HOW)
    ] = _DEFAULT.learning_rate,
    magnitude_lr: Annotated[
        float | None,
        typer.Option(help="Of the magnitudes. Default: 1e-2 at 2 and 3 bits, else 3e-3.", rich_help_panel=HOW),
    ] = _DEFAULT.magnitude_rate,
    eval_share: Annotated[
        float | None,
        typer.Option(
            help="Part of the examples that is not trained on, to see whether training helps. Default: 0.1 (at most 32) "
            "of data with answers, else 0.",
            rich_help_panel=HOW,
        ),
    ] = _DEFAULT.eval_share,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.", rich_help_panel=HOW)] = _DEFAULT.warmup,
    seed: Annotated[int, typer.Option(help="Of data order and LoRA's start.", rich_help_panel=HOW)] = _DEFAULT.seed,
    precision: Annotated[
        str,
        typer.Option(
            help="bf16 (autocast) | fp32 (of a bf16 model, too) | auto: bf16 where it is fast.", rich_help_panel=RUN
        ),
    ] = _DEFAULT.precision,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.", rich_help_panel=RUN)
    ] = False,
    base_bits: Annotated[
        int,
        typer.Option(
            help="8: frozen weights as int8 while training (half the memory); 0: as they are.", rich_help_panel=RUN
        ),
    ] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between resumable states.", rich_help_panel=RUN)] = (
        _DEFAULT.save_every
    ),
    parallel: Annotated[str, typer.Option(help="Under torchrun: ddp | fsdp.", rich_help_panel=RUN)] = "ddp",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much memory it takes, and do nothing.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Fine-tune MODEL with DL-QAT: LoRA inside the rounding, one magnitude per group, frozen weights.

    Training begins at a start ([b]--init[/b]), another method of the field if you like, or ends there
    ([b]--then nothing[/b]).

    The default is the [b]portable[/b] profile: symmetric int4, groups of 32, int8 embedding and head, int8
    activations: what every target holds exactly. Then: [b]dlqat-export --target onnx MODEL_DIR[/b].

    Exit code 0: trained, or it was already. 2: bad input, no training was done. 3: a bug in dlqat. 130: stopped; the same
    command continues.

    Examples:
      dlqat-train ./my-finetune -o model_dir --data chats.jsonl

      dlqat-train HuggingFaceTB/SmolLM2-135M-Instruct -o model_dir --data self --bits 3

      dlqat-train ./my-finetune -o model_dir --data notes.txt --init nm --set n=2 --set m=4
    """
    if steps is not None and epochs is not None:
        raise Refusal(f"--steps {steps} and --epochs {epochs:g} both say how long to train; leave one out")
    options = replace(
        _DEFAULT,
        steps=_DEFAULT.steps if steps is None else steps,
        epochs=epochs,
        eval_share=eval_share,
        batch_size=batch_size,
        micro_batch=micro_batch,
        sequence_length=sequence_length,
        learning_rate=lr,
        magnitude_rate=magnitude_lr,
        warmup=warmup,
        kd=kd,
        ce=ce,
        block_distance=block_distance,
        calibration_tokens=calibration_tokens,
        seed=seed,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        save_every=save_every,
    )
    starting()
    from dlqat.trainer import compose  # with torch, and --help imports this file

    request = compose.request(
        model,
        output,
        data or (),
        bits=bits,
        group_size=group_size,
        symmetric=not asymmetric,
        activations=activations,
        rank=rank,
        alpha=alpha,
        magnitude=magnitude,
        train_scales=train_scales,
        recipe_file=recipe_file,
        method=method,
        settings=settings or (),
        then=then,
        init=init,
        base_bits=base_bits,
        base=base,
        text_only=text_only,
        chat_template=chat_template,
        parallel=parallel,
        options=options,
    )
    console = Terminal(stderr=True, quiet=os.environ.get("RANK", "0") != "0")  # of several processes one speaks
    if dry_run:
        compose.foretell(request, console)
        return
    folder = compose.run(request, console)
    console.print(
        f"{folder} is {'trained' if request.options.steps else 'compressed'}. "
        f"Next: {shlex.join(['dlqat-export', '--target', 'onnx', str(folder)])}",
        soft_wrap=True,
    )


main = refusal.command(app)

if __name__ == "__main__":
    main()
