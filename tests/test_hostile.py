# SPDX-License-Identifier: Apache-2.0
"""Folders and files of a stranger: nothing in them runs, and each is refused in one line."""

from __future__ import annotations

import ast
import base64
import hashlib
import http.client
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import artifacts
import coreml_runs
from dlqat import artifact, own_folder, plain_file, refusal, source, visible
from dlqat.devices.process import wire
from dlqat.folded import disk
from dlqat.refusal import Refusal
from dlqat.runtime_tests import cli, readers
from dlqat.runtime_tests.readers.leftover import leftover
from dlqat.runtime_tests.reference.model import Reference
from dlqat.runtime_tests.report import eval_table, record
from dlqat.runtime_tests.report.record import Check, Report
from dlqat.source import chat_template, pretrained
from dlqat.terminal import Terminal
from dlqat.trainer.data import chat
from models import fold_model, tiny
from toy_tokenizer import toy_tokenizer

SRC = Path(pretrained.__file__).parents[1]


def model(folder: Path) -> Path:
    """A Hugging Face folder that is fine."""
    tiny().save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def folded(folder: Path) -> Path:
    """folded/ that is fine."""
    toy_tokenizer().save_pretrained(folder / "source")
    disk.write(fold_model(tiny()), folder / "folded", files=folder / "source")
    return folder / "folded"


def change(path: Path, **more: Any) -> None:
    """Add keys to a JSON file."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **more}))


# -- code inside a model

BAIT = "import pathlib\npathlib.Path(__file__).with_name('it-ran').touch()\nraise SystemExit\n"
HOSTILE = {
    "tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["bait.Bait", None]}}),
    "tokenizer, old form": ("tokenizer_config.json", {"auto_map": ["bait.Bait", None]}),
    "config": ("config.json", {"auto_map": {"AutoConfig": "bait.Bait", "AutoModelForCausalLM": "bait.Bait"}}),
    "unknown type": ("config.json", {"model_type": "bait", "auto_map": {"AutoConfig": "bait.Bait"}}),
    "part of a config": ("config.json", {"text_config": {"auto_map": {"AutoConfig": "bait.Bait"}}}),
    "generation": ("generation_config.json", {"custom_generate": "bait"}),
    "kernels of a hub": ("config.json", {"attn_implementation": "kernels-community/bait"}),
    "kernels by part": ("config.json", {"_attn_implementation": {"text_config": "kernels-community/bait"}}),
    "experts": ("config.json", {"experts_implementation": "someone/bait"}),
    "other weights": ("config.json", {"transformers_weights": "bait.bin"}),
    "adapter": ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "someone/bait"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_in_a_model_is_refused_before_transformers_sees_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model to train and as a reference; `y` stands ready on standard input, and nothing asks for it."""
    file, keys = HOSTILE[name]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    for folder, load in (
        (model(tmp_path / "model"), lambda f: source.load(source.resolve(str(f)))),
        (folded(tmp_path), Reference),
        (folded(tmp_path / "again"), source.tokenizer),
    ):
        (folder / "bait.py").write_text(BAIT)
        change(folder / file, **keys)
        with pytest.raises(Refusal, match="code that comes with a model|not known; known: llama|is not part of the"):
            load(folder)
        assert not (folder / "it-ran").exists()


def test_what_says_nothing_of_code_is_taken(tmp_path: Path) -> None:
    """Leftovers without effect: an implementation of transformers' own (it is overridden), a .py file."""
    folder = model(tmp_path)
    (folder / "bait.py").write_text(BAIT)
    change(folder / "config.json", attn_implementation="flash_attention_2", use_kernels=False)
    loaded = source.load(source.resolve(str(folder)))
    assert loaded.model.config._attn_implementation == "sdpa"


def test_what_lies_beside_a_gguf_file_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers reads tokenizer_config.json beside the file; in a folder of downloads it is a stranger's."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    change(tmp_path / "tokenizer_config.json", auto_map={"AutoTokenizer": ["bait.Bait", None]})
    seen: list[list[str]] = []
    monkeypatch.setattr(
        pretrained.AutoTokenizer,
        "from_pretrained",
        lambda folder, **_: seen.append(sorted(p.name for p in Path(folder).iterdir())) or toy_tokenizer(),
    )
    pretrained.gguf_tokenizer(tmp_path / "model.gguf", known=True)
    assert seen == [["model.gguf"]]


DOORS = {
    "from_pretrained", "from_config", "for_model", "trust_remote_code", "load_custom_generate", "pipeline", "torch_hub",
    "get_class_from_dynamic_module", "get_cached_module_file", "get_kernel", "load_adapter",
}  # fmt: skip


def uses(path: Path) -> set[str]:
    """Names in a file that lead to transformers' loading: calls, keywords and imports of Auto classes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.keyword(arg=str(name)) | ast.alias(name=name):
                stem = name.rpartition(".")[2]
                if (
                    stem in DOORS
                    or (stem.startswith("Auto") and stem[4:5].isupper())
                    or stem == "MODEL_FOR_CAUSAL_LM_MAPPING"
                ):
                    found.add(stem)
            case _:
                pass
    return found


def test_there_is_one_door_to_transformers() -> None:
    """No other module of ours loads through transformers; the door itself always says no to code."""
    door = Path(pretrained.__file__)
    assert {str(p.relative_to(SRC)): uses(p) for p in SRC.rglob("*.py") if p != door and uses(p)} == {}
    calls = [
        n
        for n in ast.walk(ast.parse(door.read_text()))
        if isinstance(n, ast.Call) and "from_pretrained" in ast.dump(n.func)
    ]
    for call in calls:
        said = {
            k.arg: ast.literal_eval(k.value)
            for k in call.keywords
            if k.arg in ("trust_remote_code", "local_files_only")
        }
        if "GenerationConfig" not in ast.dump(call.func):  # it has no code to trust
            assert said["trust_remote_code"] is False
        if not (isinstance(call.args[0], ast.Constant) and call.args[0].value is None):
            assert said["local_files_only"] is True


def test_another_door_would_be_found(tmp_path: Path) -> None:
    """The negative control of the one above."""
    for line in (
        "from transformers import AutoModelForCausalLM as M",
        "import transformers\ntransformers.AutoTokenizer",
        "model.from_pretrained('x')",
        "f(trust_remote_code=True)",
    ):
        (tmp_path / "bad.py").write_text(line)
        assert uses(tmp_path / "bad.py"), line


# -- what a reader sees

ESCAPE = "\x1b[2J\x1b[32mpassed\x1b[0m\r\x9b31m\u202eevil\u2028"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"
MARKDOWN = "x | passed |\n\n# dlqat-check: passed\n[click](http://evil.example) `a` **b**"
EVIL = f"{SCRIPT}{ESCAPE}{MARKDOWN}"


def evil_report() -> Report:
    """Every text in it is a stranger's: names of nodes, facts of a device, a result that claims to be of dlqat-eval."""
    figures = {
        "kl_histogram": [1] * 18,
        "layers": [{"name": EVIL, "error": 1e-6, "sqnr_to_float_db": 30.0}],
    }
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {
        "questions": EVIL,
        "artifact": share,
        "reference": share,
        "difference": {**share, "better": EVIL, "worse": 1},
    }
    result = {"setting": EVIL, "command": EVIL, "text": None, "tasks": {EVIL: {EVIL: row}}}
    checks = (
        Check("L1", f"int8 {EVIL}", "failed", EVIL, figures, ({EVIL: EVIL},)),
        Check("L2", EVIL, "failed", EVIL, figures),
    )
    facts = {EVIL: {"emulation": EVIL, EVIL: EVIL}, "loose": EVIL}
    return Report(EVIL, EVIL, EVIL, EVIL, 1.0, facts, {"x": EVIL}, checks, {EVIL: 1}, result)


class Strict(HTMLParser):
    """What a browser would make of the page: elements with attributes, and the text between."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_nothing_acts_in_report_html(tmp_path: Path) -> None:
    """No element that a stranger wrote, no address, and the browser is told to run and load nothing."""
    record.write(evil_report(), tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Strict()
    page.feed(text)
    tags = {tag for tag, _ in page.elements}
    assert tags >= {"svg", "table", "details", "pre"}, "every part was drawn"
    assert not tags & {"script", "img", "a", "iframe", "link", "object", "form"}
    assert not [a for _, found in page.elements for a in found if a.startswith("on") or a in ("href", "src", "style")]
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy, "the page has its style"
    assert not ACTING & set(text)


ACTING = {"\x1b", "\r", "\x9b", "\u202e", "\u2028"}


def test_nothing_acts_in_report_md(tmp_path: Path) -> None:
    """One heading says how it ended, and it is ours; names make no tables, links or headings."""
    record.write(evil_report(), tmp_path)
    text = (tmp_path / "report.md").read_text()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0] == "# dlqat-check: failed"
    assert not [h for h in headings[1:] if h.startswith("# ")]
    assert not ACTING & set(text)
    for line in text.splitlines():
        if line.startswith("|") and "script" in line:
            assert not re.search(r"(?<!\\)([<`*]|\]\()", line), line
    rows = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| L")]
    assert rows == [5, 5], "a pipe in a name begins no new cell"


def test_nothing_acts_on_the_terminal() -> None:
    """Tables, lines of progress, refusals: control characters and markup of a stranger are letters."""
    terminal = Terminal()
    with terminal.capture() as shown:
        terminal.print(cli._table(evil_report()))
        for check in evil_report().checks:
            terminal.print(cli._line(check))
        terminal.print("[red]no markup[/red] :smile:", EVIL)
        terminal.print(eval_table.table({"device": EVIL, "setting": "[/x]", "text": None, "tasks": {}}))
    assert not ACTING & set(shown.get())
    assert r"\x1b[2J" in shown.get()
    assert "[red]no markup[/red] :smile:" in shown.get()


def test_a_refusal_is_one_line_of_letters(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise Refusal(EVIL)

    with pytest.raises(SystemExit):
        refusal.command(refuse)()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not ACTING & set(said)


def test_colours_and_bars_still_act() -> None:
    """The negative control: what rich itself writes passes."""
    terminal = Terminal()
    terminal.file, terminal._force_terminal, terminal._color_system = io.StringIO(), True, None
    terminal.show_cursor(show=False)
    assert "\x1b[?25l" in terminal.file.getvalue()


def test_everything_is_printed_through_the_terminal() -> None:
    """print and Console stand in terminal.py, in what runs without dlqat, and in workers, whose output is not shown."""
    allowed = {
        "terminal.py",
        "refusal.py",
        "exporters/coreml/check_on_mac.py",
        "devices/web/browser_worker.py",
    }
    found = {
        str(p.relative_to(SRC))
        for p in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(p.read_text()))
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "Console"))
        or (isinstance(node, ast.Attribute) and node.attr in ("echo", "secho"))
        or (isinstance(node, ast.alias) and node.name in ("escape", "from_markup"))
    }
    assert found == allowed


# -- paths and files

NAMES = {
    "../x": "leads out", "a/../../x": "leads out", "/etc/passwd": "leads out", "~/x": "leads out", "C:\\x": "leads out",
    "..\\x": "leads out", "\ud800": "not the name", "": "not the name", "a\0b": "not the name", 5: "not the name", None: "not the name",
    "link-out": "link that leads out", "loop": "cannot be read", "folder": "is a folder", "pipe": "not a plain file",
    "folder-out/x": "link that leads out", "none": "does not exist", "zero": "leads out", "plain/x": "does not exist",
}  # fmt: skip


def nest(folder: Path) -> Path:
    """A folder with everything that a name should not lead to."""
    (folder.parent / "secret").mkdir()
    (folder.parent / "secret" / "x").write_text("mine")
    folder.mkdir()
    (folder / "link-out").symlink_to(folder.parent / "secret" / "x")
    (folder / "folder-out").symlink_to(folder.parent / "secret")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    for name in ("plain", "inner"):
        (folder / name).write_text("fine")
    (folder / "link-in").symlink_to("inner")
    return folder


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_stays_in_its_folder(tmp_path: Path, name: object) -> None:
    folder = nest(tmp_path / "artifact")
    assert NAMES[name] in str(plain_file.inside_fault(folder, name))  # pyright: ignore[reportArgumentType]


def test_names_that_are_fine(tmp_path: Path) -> None:
    """The negative control, and the hub's cache: its snapshots are links to blobs elsewhere, under plain names."""
    folder = nest(tmp_path / "artifact")
    assert [plain_file.inside_fault(folder, n) for n in ("plain", "link-in", "./plain")] == [None] * 3
    assert plain_file.name_fault("link-out") is None
    assert plain_file.fault(folder / "link-out") is None


def shards(name: str):
    def damage(folder: Path) -> None:
        index = {"weight_map": {"model.norm.weight": name}}
        (folder / "model.safetensors").rename(folder.parent / "s.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def instead(name: str, make: Callable[[Path], object]):
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def content(name: str, text: str | bytes):
    return instead(name, lambda path: path.write_bytes(text.encode() if isinstance(text, str) else text))


def fields(**more: Any):
    return lambda folder: change(folder / "config.json", **more)


DEEP = "[" * 100_000
KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "folder": lambda path: path.mkdir(),
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}'),
    "deep": lambda path: path.write_text(DEEP),
    "deep enough": lambda path: path.write_text('{"a":' * 500 + "1" + "}" * 500),
    "long number": lambda path: path.write_text('{"a": ' + "1" * 5000 + "}"),
    "list": lambda path: path.write_text("[]"),
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"{n}: {k}": instead(n, make) for n in ("config.json", "tokenizer_config.json", "tokenizer.json") for k, make in KINDS.items()},
    **{f"weights: {k}": instead("model.safetensors", KINDS[k]) for k in ("pipe", "endless", "loop", "folder", "deep")},
    **{f"index {n!r}": shards(n) for n in ("../s.safetensors", "/dev/zero", "a\0b", "", "missing")},
    "index of numbers": content("model.safetensors.index.json", '{"weight_map": {"a": 5}}'),
    "layers": fields(num_hidden_layers=2_000_006),
    "more layers than tensors": fields(num_hidden_layers=4000),
    "no layers": fields(num_hidden_layers=0),
    "pad token": fields(pad_token_id=10**6),
    "heads": fields(num_attention_heads=0),
    "vocabulary": fields(vocab_size=10**15),
    "rope": fields(rope_parameters=[1]),
    "theta": fields(rope_parameters={"rope_type": "default", "rope_theta": "x"}),
    "quantization": fields(quantization_config="x"),
    "head size": fields(head_dim=10**12),
    "epsilon": fields(rms_norm_eps="1e-5"),
    "windows": fields(model_type="mistral", layer_types=5, sliding_window=8),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_model_with_it_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """And at once, whatever it is: nothing hangs, nothing eats memory."""
    folder = model(tmp_path / "model")
    DAMAGES[name](folder)
    if name.startswith("index of"):
        (folder / "model.safetensors").unlink()
    start = time.monotonic()
    with pytest.raises(Refusal) as refused:
        source.load(source.resolve(str(folder)))
    assert "\n" not in visible.line(refused.value)
    assert time.monotonic() - start < 10


REFERENCES: dict[str, Callable[[Path], object]] = {
    **{f"{n}: {k}": instead(n, make) for n in ("config.json", "dlqat.json", "integers.safetensors") for k, make in KINDS.items()},
    "layers": fields(num_hidden_layers=4000),
    "vocabulary": fields(vocab_size=1 << 24),
    "specs": lambda f: change(f / "dlqat.json", specs={"x": {"bits": "4"}}),
    "unknown spec": lambda f: change(f / "dlqat.json", specs={"x": {"colour": 4}}),
    "layer": lambda f: change(f / "dlqat.json", layers={"model.layers.0.mlp.up_proj": {"kind": "quantized", "bits": 6}}),
    "kind": lambda f: change(f / "dlqat.json", layers={"model.layers.0.mlp.up_proj": {"kind": "sum", "parts": [1]}}),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_with_it_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    folder = folded(tmp_path)
    REFERENCES[name](folder)
    with pytest.raises(Refusal) as refused:
        found = Reference(folder).model
        for layer in found.layers:
            assert found.layers[layer] is not None
    assert "\n" not in visible.line(refused.value)


def test_a_bug_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, a traceback and a request; 1 and 2 stay for what they mean."""

    def bug() -> None:
        raise KeyError("x")

    with pytest.raises(SystemExit) as ended:
        refusal.command(bug)()
    said = capsys.readouterr().err
    assert ended.value.code == 3
    assert "Traceback" in said
    assert said.splitlines()[-1] == refusal.REPORT


def test_an_output_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("/proc/x", tmp_path / "file" / "x"):
        with (
            pytest.raises((Refusal, NotADirectoryError, FileExistsError)) as refused,
            own_folder.replacing(Path(place)),
        ):
            pass
        assert isinstance(refused.value, Refusal) or refusal.disk(refused.value)


# -- chat templates

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
NEVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "endless": (NEVER, "does not end: it was stopped after 1 s"),
    "endless, marked": ("{% generation %}{% endgeneration %}" + NEVER, "does not end: it was stopped after 1 s"),
    "range": ("{% for a in range(10**9) %}{% endfor %}", "Range too big"),
    "memory": ("{{ 'a' * 10**10 }}", "MemoryError"),
    "memory, slowly": (
        "{% set n = namespace(s='a') %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "Memory|does not end",
    ),
    "length": ("{{ 'a' * (2**24 + 1) }}", "it writes 16,777,217 characters"),
    "zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "python": ("{{ ''.__class__.__mro__ }}", "SecurityError|unsafe|not safe"),
}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it does; in training, and where a check asks questions. The next rendering is as if nothing had been."""
    template, says = TEMPLATES[name]
    tokenizer = toy_tokenizer(template)
    chat_template.render(toy_tokenizer(), TALK)  # the process runs
    monkeypatch.setattr(chat_template, "SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(Refusal, match=f"here: the chat template .*({says})"):
        chat.mark(TALK, tokenizer, "here")
    with pytest.raises(Refusal, match=says):
        chat_template.ids(tokenizer, TALK[:1], prompt=True)
    assert time.monotonic() - start < 30
    monkeypatch.undo()
    assert chat_template.render(toy_tokenizer(), TALK).text == toy_tokenizer().apply_chat_template(TALK, tokenize=False)


def test_templates_are_rendered_in_one_place() -> None:
    names = ("apply_chat_template", "render_jinja_template")
    found = {
        p.name
        for p in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(p.read_text()))
        if getattr(node, "attr", getattr(node, "id", getattr(node, "name", None))) in names
    }
    assert found == {"template_worker.py", "lm_eval_model.py", "loaders.py"}, (
        "lm_eval and genai have a method of that name"
    )


# -- the web server of the browser device


def test_the_web_server_answers_its_page_and_nobody_else(tmp_path: Path) -> None:
    """Another site that the user has open, a name that leads to this machine, and paths that lead out get nothing."""
    from dlqat.devices.web.browser_worker import Site

    (tmp_path / "secret").write_text("mine")
    root = tmp_path / "model dir"
    root.mkdir()
    (root / "my model.onnx").write_text("program")
    (root / "link").symlink_to(tmp_path / "secret")
    site = Site()
    site.roots["model"], site.payload = root, b"arrays"
    own = f"127.0.0.1:{site.server_port}"

    def ask(path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=10)
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": own, **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    assert ask("/model/my%20model.onnx") == (200, b"program")
    assert ask("/in", Origin=f"http://{own}", Sec_Fetch_Site="same-origin") == (200, b"arrays")
    assert ask("/index.html")[0] == 200
    for headers in (
        {"Host": f"evil.example:{site.server_port}"},
        {"Origin": "http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
    ):
        assert ask("/in", **headers)[0] == 403
        assert ask("/model/my%20model.onnx", **headers)[0] == 403
        assert ask("/out", "POST", b"evil", **headers)[0] == 403
    for path in (
        "/model/../secret",
        "/model/%2e%2e/secret",
        "/model/link",
        "/model/..%2fsecret",
        "/../page.mjs%00",
        "/model/",
    ):
        assert ask(path)[0] == 404, path
    assert ask("/anything", "POST", b"evil")[0] == 403
    assert site.payload == b"arrays"
    assert ask("/out", "POST", b"answer")[0] == 204
    assert site.payload == b"answer"
    site.shutdown()
    site.server_close()


# -- bytes that nothing uses

DATA = {
    "qdq": "onnx/model.onnx_data",
    "ort": "onnx/model.onnx_data",
    "web": "onnx/model.onnx_data",
    "xnnpack": "model.pte",
}
WEIGHTS = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


@pytest.mark.parametrize("form", [*DATA, "coreml"])
def test_bytes_that_nothing_uses_are_a_fault(tmp_path: Path, form: str) -> None:
    """Behind the last tensor and in the padding between two; as exported there are none."""
    folder = coreml_runs.export(tmp_path, fold_model(tiny())) if form == "coreml" else artifacts.export(tmp_path, form)
    path = folder / DATA.get(form, WEIGHTS)
    whole = path.read_bytes()

    def faults() -> list[str]:
        return [
            f for f in readers.read(artifact.find(folder).program).faults if "bytes that nothing" in f or "padding" in f
        ]

    assert faults() == []
    path.write_bytes(whole + b"hidden")
    assert any("that nothing uses" in fault for fault in faults())
    path.write_bytes(whole + bytes(1 << 17))
    assert any("of padding" in fault for fault in faults())
    path.write_bytes(whole + bytes(16))
    assert faults() == [], "the negative control: a little padding"


def test_padding_that_is_not_zeros_is_a_fault() -> None:
    content = np.zeros(300, np.uint8)
    spans = [(0, 100), (128, 100), (228, 72)]
    assert list(leftover("x", content, spans)) == []
    content[120] = 1
    assert list(leftover("x", content, spans)) == ["x: 28 bytes that nothing uses, from byte 100 on"]


@pytest.mark.parametrize(
    "header",
    [b"[]", b"5", b"{", b'{"arrays": 5}', b'{"arrays": [5]}', b"[" * 100_000, b"\xff"]
    + [f'{{"arrays": [{{"name": "a", "dtype": "{kind}", "shape": {shape}}}]}}'.encode()
       for kind, shape in (("object", "[1]"), ("float32", "[-1]"), ("float32", "[1e9]"), ("V9", "[1]"), ("float32", '"x"'))],
    ids=lambda header: header[:60],
)  # fmt: skip
def test_a_message_of_a_device_that_is_none(header: bytes) -> None:
    """A runner on a phone says what it likes."""
    frame = io.BytesIO(wire.HEAD.pack(wire.MAGIC, len(header), 4) + header + b"abcd")
    with pytest.raises(wire.Garbled):
        wire.decode(frame.read)
