# SPDX-License-Identifier: Apache-2.0
"""dlqat-app new: the template of a platform with a model in it, as a folder that is the user's from then on."""

from __future__ import annotations

import shutil
from pathlib import Path

from dlqat import app_file, own_folder, plain_file
from dlqat import artifact as artifacts
from dlqat.app_file import App
from dlqat.apps.platforms import PLATFORMS, Platform, export_command, fault
from dlqat.artifact import Artifact
from dlqat.refusal import Refusal

HERE = Path(__file__).parent
_LEFT = shutil.ignore_patterns("node_modules", "dist", "__pycache__", "build", ".build", ".gradle")


def new(name: str, artifact: Path, output: Path) -> App:
    """Write the app of a platform with `artifact` in it to `output`. Refusal, before any work, if it cannot run it."""
    if name not in PLATFORMS:
        raise Refusal(f"platform {name!r} is not known; known: {', '.join(PLATFORMS)}")
    platform = PLATFORMS[name]
    found, app = described(artifact)
    if (reason := fault(name, app, found)) is not None:
        raise Refusal(f"{artifact} {reason}")
    if damage := next(artifacts.damage(found), None):
        raise Refusal(f"{artifact}: {damage}; export again")
    own_folder.refuse_foreign(output)
    with own_folder.replacing(output) as draft:
        template(name, draft)
        copy_model(found, app, draft / platform.model)
    return app


def template(name: str, folder: Path) -> None:
    """The files of a platform's template, without a model, into `folder`."""
    shutil.copytree(HERE / name, folder, ignore=_LEFT, dirs_exist_ok=True)
    if (shared := PLATFORMS[name].shared) is not None:
        shutil.copytree(HERE / "shared", folder / shared)


def described(artifact: Path) -> tuple[Artifact, App]:
    """An artifact and its dlqat-app.json, with what dlqat-check found."""
    found = artifacts.find(artifact)
    return found, app_file.with_report(app_file.read(artifact), found)


def copy_model(found: Artifact, app: App, folder: Path) -> None:
    """The files that dlqat-app.json names, and itself."""
    for name in app.files:
        if (reason := plain_file.inside_fault(found.folder, name)) is not None:
            raise Refusal(f"{found.folder / name} {reason}; export again")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.folder / name, folder / name)
    (folder / app_file.NAME).write_text(app_file.text(app), encoding="utf-8")


def artifact_of(model: Path, platform: Platform) -> Path | None:
    """The artifact that `model` is or has for a platform; None if it is a model_dir that has none yet."""
    if not model.is_dir():
        raise Refusal(f"{model} is not a folder; give a model_dir or what dlqat-export wrote")
    if (model / artifacts.MANIFEST).is_file():
        return model
    forms = [f"{platform.target}-{platform.form}"] if platform.form else []
    for folder in (model / name for name in (*forms, platform.target)):
        if (folder / artifacts.MANIFEST).is_file():
            return folder
    if not any((model / name).exists() for name in ("folded", "adapters.safetensors", "integers.safetensors")):
        raise Refusal(
            f"{model} is neither a model_dir nor an artifact; {export_command('MODEL_DIR', platform)} writes one"
        )
    return None
