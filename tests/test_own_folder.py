# SPDX-License-Identifier: Apache-2.0
"""dlqat deletes what it wrote itself and nothing else, and one command at a time writes a folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlqat import folder_lock, own_folder
from dlqat.exporters import manifest
from dlqat.folded import disk
from dlqat.refusal import Refusal
from dlqat.runtime_tests.eval.journal import Journal
from dlqat.trainer import run
from dlqat.trainer.log import Log
from models import fold_model, tiny


def write(target: Path, content: str = "new") -> None:
    with own_folder.replacing(target) as draft:
        (draft / "inner").mkdir()
        (draft / "a.bin").write_text(content)
        (draft / "inner" / "b.bin").write_text(content)


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: content of files, targets of links."""
    return {
        str(p.relative_to(folder)): f"-> {p.readlink()}" if p.is_symlink() else p.read_text()
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def test_what_dlqat_wrote_is_replaced(tmp_path: Path) -> None:
    for content in ("old", "new"):
        write(tmp_path / "out", content)
        (tmp_path / "out" / "inner" / ".DS_Store").touch()
    assert {k: v for k, v in tree(tmp_path).items() if "dlqat" not in k and "DS" not in k} == {
        "out/a.bin": "new",
        "out/inner/b.bin": "new",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def link_inside(out: Path) -> None:
    (out / "a.bin").rename(out.parent / "mine.bin")
    (out / "a.bin").symlink_to(out.parent / "mine.bin")


def linked(out: Path) -> None:
    out.rename(out.with_name("real"))
    out.symlink_to("real")


FOREIGN = {
    "a file of the user": (lambda out: (out / "thesis.txt").write_text("mine"), "thesis.txt, which dlqat did not write"),
    "below": (lambda out: (out / "inner" / "x").write_text("mine"), "inner/x, which dlqat did not write"),
    "edited": (lambda out: (out / "a.bin").write_text("mine"), "a.bin, which was changed since dlqat wrote it"),
    "a link to the same bytes": (link_inside, "a.bin, which is not a plain file"),
    "a link to a folder": (lambda out: (out / "x").symlink_to(out / "inner"), "x, which is not a plain file"),
    "a pipe": (lambda out: os.mkfifo(out / "pipe"), "pipe, which is not a plain file"),
    "the folder is a link": (linked, "is a symbolic link, which dlqat does not follow"),
    "no list": (lambda out: (out / own_folder.MARKER).unlink(), "a.bin, which dlqat did not write"),
    "a list that is a link": (
        lambda out: (out / own_folder.MARKER).rename(out.parent / "m") and (out / own_folder.MARKER).symlink_to("../m"),
        "a.bin, which dlqat did not write",
    ),
    "a list that is none": (lambda out: (out / own_folder.MARKER).write_text("[" * 100_000), "a.bin, which dlqat did"),
    "old in the way": (lambda out: shutil.copytree(out, out.with_name(".out.dlqat-old")).joinpath("x").touch(), "in the way"),
    "draft in the way": (lambda out: (d := out.with_name(".out.dlqat-draft")).mkdir() or (d / "x").touch(), "in the way"),
    "draft is a link": (lambda out: out.with_name(".out.dlqat-draft").symlink_to(out), "in the way"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_dlqat_does_not_know_stays(tmp_path: Path, name: str) -> None:
    disturb, says = FOREIGN[name]
    out = tmp_path / "out"
    write(out, "old")
    disturb(out)
    pipe = out / "pipe"
    before = {} if pipe.exists() else tree(tmp_path)
    with pytest.raises(Refusal, match=says):
        write(out)
    assert pipe.exists() or tree(tmp_path) == before


def test_names_of_others_are_not_ours(tmp_path: Path) -> None:
    """.out.old and .out.draft were names of an earlier dlqat, and may be somebody's."""
    for name in (".out.old", ".out.draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    before = tree(tmp_path)
    write(tmp_path / "out", "old")
    write(tmp_path / "out")
    assert {k: v for k, v in tree(tmp_path).items() if not k.startswith("out/")} == before


def test_a_file_that_comes_while_dlqat_writes_stays(tmp_path: Path) -> None:
    """It was not there when the folder was looked at."""
    out = tmp_path / "out"
    write(out, "old")
    with own_folder.replacing(out) as draft:
        (draft / "a.bin").write_text("new")
        (out / "thesis.txt").write_text("mine")
    assert (tmp_path / ".out.dlqat-old" / "thesis.txt").read_text() == "mine"
    with pytest.raises(Refusal, match=r"\.out\.dlqat-old holds thesis.txt, .* is in the way"):
        write(out)


def test_a_crafted_manifest_makes_nothing_ours(tmp_path: Path) -> None:
    out = tmp_path / "documents"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    (out / "report.md").write_text("mine")
    entry = {"sha256": "0" * 64, "bytes": 4}
    claims = {"format": 1, "target": "onnx", "files": {"thesis.txt": entry, "report.md": {}}}
    (out / "manifest.json").write_text(json.dumps(claims))
    assert manifest.earlier(out).keys() >= {"thesis.txt"}, "it does claim it"
    with pytest.raises(Refusal, match="report.md, which was changed since|thesis.txt, which was changed since"):
        own_folder.refuse_foreign(out, manifest.earlier)
    (out / "report.md").unlink()
    with pytest.raises(Refusal, match="thesis.txt, which was changed since"):
        own_folder.refuse_foreign(out, manifest.earlier)


def test_folded_of_an_earlier_dlqat_is_ours(tmp_path: Path) -> None:
    """It has no list: its four files, and what equals model_dir's."""
    source = tmp_path / "model"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    disk.write(fold_model(tiny()), source / "folded", files=source)
    (source / "folded" / own_folder.MARKER).unlink()
    disk.write(fold_model(tiny()), source / "folded", files=source)
    (source / "folded" / own_folder.MARKER).unlink()
    (source / "folded" / "tokenizer.json").write_text('{"mine": 1}')
    with pytest.raises(Refusal, match="tokenizer.json, which dlqat did not write"):
        disk.write(fold_model(tiny()), source / "folded", files=source)
    assert (source / "folded" / "tokenizer.json").read_text() == '{"mine": 1}'


KILLED = """
import os, sys
from pathlib import Path
from dlqat import own_folder
left = int(sys.argv[2])
def count(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
with own_folder.replacing(Path(sys.argv[1])) as draft:
    sys.addaudithook(count)
    (draft / "a.bin").write_text("new")
    (draft / "c.bin").write_text("new")
"""


def test_a_kill_at_every_step_loses_nothing(tmp_path: Path) -> None:
    """Whichever rename or deletion it stops, the next write finds the old or the new, whole, and leaves nothing else."""
    steps = 0
    while True:
        steps += 1
        place = tmp_path / str(steps)
        write(place / "out", "old")
        (place / "out" / own_folder.KEPT).mkdir()
        (place / "out" / own_folder.KEPT / "answers").write_text("hours")
        done = subprocess.run([sys.executable, "-c", KILLED, place / "out", str(steps)], check=False)
        with pytest.raises(Stop), own_folder.replacing(place / "out"):
            raise Stop
        names = {k: v for k, v in tree(place / "out").items() if k != own_folder.MARKER}
        answers = f"{own_folder.KEPT}/answers"
        assert names in (
            {"a.bin": "old", "inner/b.bin": "old", answers: "hours"},
            {"a.bin": "new", "c.bin": "new", answers: "hours"},
        ), steps
        assert [p.name for p in place.iterdir()] == ["out"], steps
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert steps > 8


class Stop(Exception):
    """What ends a write before its renames."""


# -- links on the way


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Journals, logs and model_dir of a stranger: what a link points to stays as it is."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    folder = tmp_path / "eval"
    journal = Journal(folder, {"a": 1})
    journal.close()
    journal.path.unlink()
    journal.path.symlink_to(mine)
    with pytest.raises(Refusal, match="behind a symbolic link"):
        Journal(folder, {"a": 1})
    (tmp_path / "log").symlink_to(mine)
    with pytest.raises(Refusal, match="symbolic link"):
        Log(tmp_path / "log", Fake(), 1, 0)  # pyright: ignore[reportArgumentType]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").symlink_to(mine)
    with pytest.raises(Refusal, match="dlqat did not write it"):
        own_folder.delete(tmp_path / "model", "tokenizer.json")
    (tmp_path / "model" / "training").symlink_to(tmp_path)
    with pytest.raises(Refusal, match="training is a symbolic link"):
        run._clear(tmp_path / "model")
    assert mine.read_text() == "mine"


class Fake:
    """A progress bar that shows nothing."""

    def add_task(self, *_: object, **__: object) -> int:
        return 0


def test_a_file_that_is_no_journal_is_not_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.put("a", 1)
    journal.close()
    with journal.path.open("ab") as stream:
        stream.write(b'["b", 2')
    again = Journal(tmp_path, {})
    assert (again.get("a"), len(again)) == (1, 1)
    again.close()
    journal.path.write_text("a letter\nof mine\n")
    with pytest.raises(Refusal, match="is damaged; delete it"):
        Journal(tmp_path, {})
    assert journal.path.read_text() == "a letter\nof mine\n"


# -- one at a time

HOLDER = """
import sys, time
from pathlib import Path
from dlqat import folder_lock
with getattr(folder_lock, sys.argv[2])(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize(
    ("held", "asked", "refused"),
    [
        ("writing", "writing", True),
        ("writing", "reading", True),
        ("reading", "writing", True),
        ("reading", "reading", False),
    ],
)
def test_one_command_at_a_time(tmp_path: Path, held: str, asked: str, refused: bool) -> None:
    """Who is second is told whom it waits for; kill -9 releases the lock, and no file of it stays."""
    folder = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder, held], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        if refused:
            says = rf"another dlqat command \(pid {other.pid}\) is {held} .*out; wait"
            with pytest.raises(Refusal, match=says), getattr(folder_lock, asked)(folder):
                pass
        else:
            with getattr(folder_lock, asked)(folder):
                pass
        other.kill()
    with folder_lock.writing(folder):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_leaves_no_folders(tmp_path: Path) -> None:
    with pytest.raises(Stop), folder_lock.writing(tmp_path / "new" / "newer" / "out"):
        raise Stop
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_never_mix(tmp_path: Path) -> None:
    """Twelve writers of one folder: each is refused or writes all of it."""
    program = (
        "import sys; from pathlib import Path; from dlqat import own_folder\n"
        "from dlqat.refusal import Refusal\n"
        "for i in range(30):\n"
        "    try:\n"
        f"        with own_folder.replacing(Path({str(tmp_path / 'out')!r})) as draft:\n"
        "            for n in range(20): (draft / str(n)).write_text(sys.argv[1])\n"
        "    except Refusal as r:\n"
        "        assert 'another dlqat command' in str(r), r\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, letter]) for letter in "abcdefghijkl"]
    assert [w.wait(100) for w in writers] == [0] * 12
    assert len({v for k, v in tree(tmp_path / "out").items() if k != own_folder.MARKER}) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
