"""Shared tickets as folders: what is written, what is loaded, and what is refused, without a network."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels import files
from frozen_kernels.hub import FolderError
from frozen_kernels.hub import folder as hub_folder

GIVEN = {"library_name": "frozen_kernels", "layout": 1, "ticket": "ticket.safetensors"}


def build(width: int = 24) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def frozen(width: int = 24, finalize: bool = True, **settings) -> nn.Sequential:
    model = build(width)
    fk.freeze_(model, fk.FreezeConfig(**{"seed": 5, **settings}))
    if finalize:
        fk.finalize_(model)
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    """A whole shared ticket."""
    fk.save_pretrained(frozen(), tmp_path / "net", build_kwargs={"width": 24})
    return tmp_path / "net"


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def set_config(folder: Path, **fields) -> None:
    (folder / "config.json").write_text(json.dumps({**GIVEN, **fields}))


@pytest.mark.parametrize(
    ("code", "residency"),
    [("sign", None), ("sign", "planes"), ("stored", None), ("stored", "dense"), ("signs", None), ("signs", "dense")],
)
def test_what_is_saved_is_loaded(tmp_path, code, residency):
    model = frozen(40, **({"code": code} if code == "sign" else {"code": code, "freeze_ratio": 0.0}))
    fk.save_pretrained(model, tmp_path / "deep" / "net", build="nets:build", build_kwargs={"width": 40})
    fk.save_ticket(model, tmp_path / "alone.safetensors")
    written = tmp_path / "deep" / "net"
    assert sorted(p.name for p in written.iterdir()) == ["README.md", "config.json", "ticket.safetensors"]
    assert (written / "ticket.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
    assert config_of(written) == {**GIVEN, "build": "nets:build", "build_kwargs": {"width": 40}}
    loaded = fk.from_pretrained(written, build=build, residency=residency)
    x = torch.randn(4, 8)
    expected = model if residency is None else fk.load_ticket(build(40), written / "ticket.safetensors").eval()
    if residency is not None:
        fk.set_residency(expected, residency)
        held = {layer.residency for layer in fk.nn.models.frozen_layers(loaded).values()}
        assert held == {residency}
    assert torch.equal(loaded(x), expected(x)) and not any(m.training for m in loaded.modules())
    assert torch.equal(fk.from_pretrained(str(written), build=build)(x), model(x))


def test_no_code_runs_unasked(tmp_path, monkeypatch):
    (tmp_path / "their_nets.py").write_text(
        "from pathlib import Path\nfrom test_hub import build\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Net:\n    make = staticmethod(build)\nvalue = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    where = tmp_path / "net"
    model = frozen()
    fk.save_pretrained(model, where, build="their_nets:Net.make", build_kwargs={"width": 24})
    with pytest.raises(FolderError, match=r"config.json: names their_nets:Net.make\(width=24\), which is not run"):
        fk.from_pretrained(where)
    assert torch.equal(fk.from_pretrained(where, build=build)(torch.ones(2, 8)), model(torch.ones(2, 8)))
    assert not (tmp_path / "ran").exists() and "their_nets" not in sys.modules
    loaded = fk.from_pretrained(where, trust=True)
    assert (tmp_path / "ran").exists() and isinstance(loaded, nn.Sequential)
    for named, told in (
        ("their_nets:Net.other", "has no attribute 'other'"),
        ("no_such_module:build", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("their_nets:value", "is a int, expected a function"),
    ):
        set_config(where, build=named)
        with pytest.raises(FolderError, match=f"config.json: build: .*{told}"):
            fk.from_pretrained(where, trust=True)
    set_config(where)
    with pytest.raises(FolderError, match="trust: it names no build"):
        fk.from_pretrained(where, trust=True)
    with pytest.raises(FolderError, match=r"config.json: names no build; pass build=, a function"):
        fk.from_pretrained(where)
    set_config(where, build_kwargs={"width": 3, "long": "x" * 10**4})
    with pytest.raises(
        FolderError, match=r"names no build, only its arguments width=3, long='x{170,}\.\.\.; pass"
    ) as told:
        fk.from_pretrained(where)
    assert len(str(told.value)) < 1000
    for number, line in enumerate(("raise ValueError('boom')", "raise SystemExit(0)")):
        (tmp_path / f"their_faults{number}.py").write_text(line)
        set_config(where, build=f"their_faults{number}:build")
        raised = ("ValueError: boom", "SystemExit: 0")[number]
        with pytest.raises(FolderError, match=f"'their_faults{number}:build' cannot be imported: {raised}"):
            fk.from_pretrained(where, trust=True)


FOREIGN = {
    "no config": (None, r"expected config.json and a ticket, .* found README.md, ticket.safetensors"),
    "not JSON": ("import os", "config.json: expected JSON, got b'import os'"),
    "half of it": ('{"library_name": "frozen_ker', "config.json: expected JSON"),
    "empty": ("", "config.json: expected JSON"),
    "large": (" " * (1 << 20) + "{}", "config.json: at most 1048576 bytes are read, it has more"),
    "a list": ("[]", r"config.json: expected a JSON object, got \[\]"),
    "twice": ('{"layout": 1, "layout": 2}', "the key 'layout' is there twice"),
    "transformers": ('{"model_type": "bert"}', "expected 'frozen_kernels', got None; with model_type 'bert' it is a c"),
    "timm": ('{"library_name": "timm"}', "library_name: expected 'frozen_kernels', got 'timm'"),
    "no layout": ({"layout": None}, "layout: an integer from 1, got None"),
    "layout true": ({"layout": True}, "layout: an integer from 1, got True"),
    "newer": ({"layout": 2}, "layout: 2; this release reads up to 1, a newer frozen_kernels wrote this"),
    "no ticket": ({"ticket": None}, "ticket: a file name .*, got None"),
    "elsewhere": ({"ticket": "../ticket.safetensors"}, "ticket: a file name .* got '../ticket.safetensors'"),
    "absolute": ({"ticket": "/etc/x.safetensors"}, "ticket: a file name .* got '/etc/x.safetensors'"),
    "half a letter": ({"ticket": "t\ud800.safetensors"}, r"ticket: a file name .* got 't\\ud800.safetensors'"),
    "pickle": ({"ticket": "pytorch_model.bin"}, "ticket: a file name .* got 'pytorch_model.bin'"),
    "absent": ({"ticket": "other.safetensors"}, "other.safetensors: missing; config.json beside it names this"),
    "no path": ({"build": "os.system"}, "build: 'module:callable' .* got 'os.system'"),
    "no arguments": ({"build_kwargs": [1]}, r"build_kwargs: a JSON object, got \[1\]"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_of_something_else_is_told_of(folder, case):
    content, told = FOREIGN[case]
    if content is None:
        (folder / "config.json").unlink()
    elif isinstance(content, dict):
        set_config(folder, **content)
    else:
        (folder / "config.json").write_text(content)
    with pytest.raises(FolderError, match=told):
        fk.from_pretrained(folder, build=lambda **_: pytest.fail("built, of a folder that is refused"))


def test_a_ticket_that_is_not_whole_is_told_of(folder):
    ticket = folder / "ticket.safetensors"
    whole = ticket.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        ticket.write_bytes(whole[:size])
        with pytest.raises(fk.TicketError, match=r"ticket.safetensors: "):
            fk.from_pretrained(folder, build=build)
    ticket.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(FolderError, match="expected a ticket, got a pointer of git-lfs"):
        fk.from_pretrained(folder, build=build)
    ticket.write_bytes(whole)
    with pytest.raises(fk.TicketError, match=r"shape \[24, 8\] in the ticket, \[25, 8\] in the model"):
        fk.from_pretrained(folder, build=lambda width: build(width + 1))
    ticket.unlink()
    with pytest.raises(FolderError, match=r"ticket.safetensors: missing"):
        fk.from_pretrained(folder, build=build)


@pytest.mark.filterwarnings("ignore:folder. .*was there without a config.json:UserWarning")
@pytest.mark.parametrize("over_another", [False, True])
def test_a_half_written_folder_never_passes_for_a_whole_one(tmp_path, monkeypatch, over_another):
    """A writer is stopped before each of its files is put in place."""
    replace, where = files.os.replace, tmp_path / "net"
    for last in range(4):
        if over_another:
            fk.save_pretrained(frozen(), where)
        left = iter(range(last))

        def stopping(temporary, target, left=left):
            if Path(target).parent == where and next(left, None) is None:
                raise OSError("stopped")
            replace(temporary, target)

        monkeypatch.setattr(files.os, "replace", stopping)
        if last == 3:
            fk.save_pretrained(frozen(32), where, build_kwargs={"width": 32})
            assert fk.from_pretrained(where, build=build)[0].out_features == 32
        else:
            with pytest.raises(OSError, match="stopped"):
                fk.save_pretrained(frozen(32), where, build_kwargs={"width": 32})
            with pytest.raises(FolderError, match=r"expected config.json and a ticket"):
                fk.from_pretrained(where, build=build)
        monkeypatch.undo()
    assert sorted(p.name for p in where.iterdir()) == ["README.md", "config.json", "ticket.safetensors"]


class Strange:
    pass


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"build": "module.build"}, ValueError, "build: 'module:callable' .* got 'module.build'"),
        ({"build": "a b:c"}, ValueError, "build: 'module:callable' .* got 'a b:c'"),
        ({"build": build}, ValueError, "build: 'module:callable' .* got <function build"),
        ({"build_kwargs": [8]}, ValueError, r"build_kwargs: a mapping .* got \[8\]"),
        ({"build_kwargs": {"net": Strange()}}, ValueError, "build_kwargs: 'net' is .*Strange.* JSON cannot hold"),
        ({"build_kwargs": {"x": float("nan")}}, ValueError, "build_kwargs: 'x' is nan, which JSON cannot hold"),
        ({"build_kwargs": {"x": (1, 2)}}, ValueError, r"'x' is \(1, 2\); from JSON it comes back as \[1, 2\]"),
        ({"build_kwargs": {"x": "\ud800"}}, ValueError, r"build_kwargs: 'x' is '\\ud800', which JSON cannot hold"),
        ({"build_kwargs": {"x": 10**5000}}, ValueError, "build_kwargs: 'x' is of type int, which JSON cannot hold"),
        ({"build_kwargs": {"x": "y" * (1 << 20)}}, ValueError, "build_kwargs: config.json of at most 1048576 bytes"),
        ({"build_kwargs": {3: 2}}, ValueError, "build_kwargs: names are text, got 3"),
        ({"build_kwargs": {"x": {1: 2}}}, ValueError, r"'x' is \{1: 2\}; from JSON it comes back as \{'1': 2\}"),
        ({"license": "mit\ntags: x"}, ValueError, r"license: text of one line, got 'mit\\ntags: x'"),
        ({"license": ""}, ValueError, "license: text of one line, got ''"),
        ({"tags": "vision"}, ValueError, "tags: a list of texts, got 'vision'"),
        ({"tags": ["a", 3]}, ValueError, "tags: text of one line, got 3"),
        ({"model": build()}, ValueError, "model: no frozen layers"),
        ({"model": {"w": 1}}, TypeError, "model: a torch.nn.Module, got dict"),
        ({"model": fk.MaskBank(frozen(freeze_ratio=0.0, finalize=False))}, TypeError, "MaskBank.save writes a bank"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_writes_nothing(folder, tmp_path, given, error, told):
    given, before = {"model": frozen(), **given}, contents(folder)
    for where in (tmp_path / "other", folder):
        with pytest.raises(error, match=told):
            fk.save_pretrained(folder=where, **given)
    assert not (tmp_path / "other").exists() and contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_links_are_replaced_and_not_followed(folder, tmp_path):
    """A snapshot in the cache of the hub is a folder of links."""
    before, snapshot = contents(folder), tmp_path / "snapshot"
    snapshot.mkdir()
    for name in before:
        (snapshot / name).symlink_to(Path("..") / "net" / name)
    fk.save_pretrained(frozen(32), snapshot, build_kwargs={"width": 32})
    assert contents(folder) == before and not any(path.is_symlink() for path in snapshot.iterdir())
    assert fk.from_pretrained(snapshot, build=build)[0].out_features == 32


class Configured(nn.Sequential):
    """Stands for a model of transformers."""

    config = SimpleNamespace(to_json_string=lambda: '{"model_type": "mine"}')


def test_files_of_others_are_not_overwritten(folder, tmp_path, monkeypatch):
    theirs = folder / "transformers" / "config.json"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    fk.save_pretrained(frozen(seed=6), folder)
    fk.save_pretrained(frozen(seed=7), folder)
    before = contents(folder)
    assert theirs.read_text() == "theirs"
    monkeypatch.setattr(hub_folder, "loaded_class", lambda *_: Configured)
    model = Configured(*frozen())
    with pytest.raises(
        ValueError, match=r"not overwritten, no earlier save_pretrained wrote .*transformers.config.json"
    ):
        fk.save_pretrained(model, folder)
    theirs.unlink()
    theirs.parent.rmdir()
    theirs.parent.symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"transformers is a link or a file, expected a folder"):
        fk.save_pretrained(model, folder)
    assert not (tmp_path / "config.json").exists()
    assert {**contents(folder), "transformers/config.json": b"theirs"} == before
    theirs.parent.unlink()
    fk.save_pretrained(model, folder)
    assert theirs.read_text() == '{"model_type": "mine"}' and config_of(folder)["transformers"] is True
    fk.save_pretrained(model, folder)
    fk.save_pretrained(frozen(), folder)
    assert not theirs.exists()


def test_a_ticket_that_no_config_names_is_told_of(folder):
    (folder / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"ticket.safetensors was there without a config.json that names it") as told:
        fk.save_pretrained(frozen(), folder)
    assert told[0].filename == __file__
    (folder / "config.json").unlink()
    (folder / "ticket.safetensors").write_bytes(b"theirs")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"not overwritten, .*ticket.safetensors is of something else"):
        fk.save_pretrained(frozen(), folder)
    assert contents(folder) == before


def test_what_is_no_file_is_neither_waited_for_nor_replaced(folder):
    before = contents(folder)
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")
    with pytest.raises(ValueError, match=r"README.md is no regular file"):
        fk.save_pretrained(frozen(), folder)
    assert contents(folder) == {name: text for name, text in before.items() if name != "README.md"}
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(FolderError, match=r"config.json: expected a regular file"):
        fk.from_pretrained(folder, build=build)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    where = tmp_path / "bert"
    where.mkdir()
    (where / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"folder: not overwritten, its config.json is of something else: .*'bert'"):
        fk.save_pretrained(frozen(), where)
    assert [p.name for p in where.iterdir()] == ["config.json"] and "bert" in (where / "config.json").read_text()
    with pytest.raises(ValueError, match=r"folder: .*config.json is a file"):
        fk.save_pretrained(frozen(), where / "config.json")


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"trust": "yes"}, TypeError, "trust: True or False, got 'yes'"),
        ({"trust": True}, ValueError, "trust: True together with build"),
        ({"build": build()}, TypeError, "build: a function or class that returns the plain model, got Sequential"),
        ({"build": "nets:build"}, TypeError, "build: a function or class .* got str"),
        ({"build": lambda: build()}, TypeError, r"build: does not take the arguments in .*, width=24: .*unexpected"),
        ({"build": lambda width: {"w": width}}, TypeError, r"build: expected a torch.nn.Module, it returned \{'w': 24"),
        ({"residency": "small"}, ValueError, "residency: one of .* got 'small'"),
        ({"revision": "main"}, ValueError, "revision: of a repository; .* is a folder of this machine, got 'main'"),
        ({"path_or_repo": "./no/such"}, FileNotFoundError, "./no/such: no such folder, and not the name of a repo"),
        ({"path_or_repo": Path("no_such")}, FileNotFoundError, "no_such: no such folder"),
        ({"path_or_repo": "a/b/c"}, FileNotFoundError, "a/b/c: no such folder"),
        ({"path_or_repo": __file__}, FolderError, "test_hub.py: a file, expected a folder or a repository"),
    ],
)
def test_wrong_arguments_are_told_of(folder, given, error, told):
    with pytest.raises(error, match=told):
        fk.from_pretrained(**{"path_or_repo": folder, "build": build, **given})


def test_folders_need_no_client_and_repositories_name_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "frozen_kernels.hub.mixin", raising=False)
    fk.save_pretrained(frozen(), folder)
    fk.from_pretrained(folder, build=build)
    extra = r"pip install 'frozen-kernels\[hub\]'"
    with pytest.raises(ImportError, match=f"somebody/net: no such folder here; .* needs huggingface_hub: {extra}"):
        fk.from_pretrained("somebody/net", build=build)
    with pytest.raises(ImportError, match=f"push_to_hub needs huggingface_hub: {extra}"):
        fk.push_to_hub(frozen(), "somebody/net")
    with pytest.raises(ImportError, match=f"TicketHubMixin needs huggingface_hub: {extra}"):
        fk.hub.TicketHubMixin  # noqa: B018


def front_matter(card: str) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def table_of(card: str, title: str) -> list[list[str]]:
    lines = card.partition(f"## {title}\n")[2].strip().splitlines()
    end = next(i for i, line in enumerate([*lines, ""]) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:end]]


def test_the_card_says_what_the_folder_holds(tmp_path, monkeypatch):
    model = build()
    settings = {"0": fk.FreezeConfig(seed=9), "3": fk.FreezeConfig(code="stored", scope="local", sparsity=0.5)}
    fk.freeze_(model, lambda module, name: settings[name], filter_fn=lambda module, name: True)
    fk.finalize_(model, "float16")
    where = tmp_path / "net"
    fk.save_pretrained(
        model, where, build="test_hub:build", build_kwargs={"width": 24}, license="apache-2.0",
        tags=["digits: 8x8", "größe"], sample_input=torch.ones(2, 8),
    )  # fmt: skip
    card = (where / "README.md").read_text(encoding="utf-8")
    tags = ["frozen-kernels", "digits: 8x8", "größe"]
    assert front_matter(card) == {"library_name": "frozen_kernels", "license": "apache-2.0", "tags": tags}
    size, report = (where / "ticket.safetensors").stat().st_size, fk.footprint(model)
    sums = {row[0]: [cell.replace(",", "") for cell in row[1:]] for row in table_of(card, "Bytes")}
    assert sums["total"] == [str(report.totals()[k]["total"]) for k in ("disk", "resident", "dense")]
    assert sums["total"][0] == str(size) and f"The file has {size:,} bytes" in card
    assert sum(int(sums[kind][0]) for kind in ("frozen weights", "ordinary tensors", "metadata")) == size
    first, last = table_of(card, "Layers")
    assert first[:5] == ["`0`", "FrozenLinear", "24x8", "sign", "9"]
    counts = model[0].counts
    assert first[5:] == [f"{counts[kind] / 192:.1%}" for kind in ("pruned", "locked", "free", "kept")]
    assert last == ["`3`", "FrozenLinear", "3x24", "stored float16", "", "0.0%", "0.0%", "100.0%", "50.0%"]
    assert "Peak of a forward: " in card and str(tmp_path) not in card
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code_of(card), "README.md", "exec"), names)
    assert torch.equal(names["model"](torch.ones(2, 8)), model.eval()(torch.ones(2, 8)))


def test_a_card_keeps_what_people_wrote(folder):
    card = folder / "README.md"
    made = card.read_text()
    assert code_of(made) == 'import frozen_kernels as fk\n\nmodel = fk.from_pretrained("net", build=build)\n'
    assert "a `Sequential`; `config.json` gives it `width=24`." in made
    card.write_text(made.replace("# net\n", "# net\n\nTrained by us.\n") + "\n## Ethics\n\nNone.\n")
    fk.save_pretrained(frozen(seed=77), folder)
    renewed = card.read_text()
    assert "Trained by us." in renewed and renewed.endswith("## Ethics\n\nNone.\n")
    assert {row[4] for row in table_of(renewed, "Layers")} == {"77"} and {
        row[4] for row in table_of(made, "Layers")
    } == {"5"}
    card.write_text("# Mine\n")
    fk.save_pretrained(frozen(seed=78), folder)
    assert card.read_text() == "# Mine\n"


def test_a_card_keeps_its_bytes_and_says_what_it_does_not_take(folder):
    card = folder / "README.md"
    card.write_bytes(card.read_bytes().replace(b"\n", b"\r\n") + "Für".encode("latin-1"))
    outside = re.split(b"<!--.*-->", card.read_bytes(), flags=re.DOTALL)
    fk.save_pretrained(frozen(seed=77), folder)
    assert re.split(b"<!--.*-->", card.read_bytes(), flags=re.DOTALL) == outside and b"| 77 |" in card.read_bytes()
    assert card.read_bytes().count(b"\n") == card.read_bytes().count(b"\r\n")
    with pytest.warns(
        UserWarning, match=r"^license, tags: not written, the front matter of .*README.md is kept"
    ) as told:
        fk.save_pretrained(frozen(), folder, license="mit", tags=["new"])
    assert told[0].filename == __file__ and b"mit" not in card.read_bytes()
    card.unlink()
    for _ in range(2):  # what the card says already is no reason to warn
        fk.save_pretrained(frozen(), folder, license="mit", tags=["new"])


def test_whatever_is_in_a_name_the_card_shows_it(tmp_path, monkeypatch):
    model = nn.ModuleDict({"a|b": nn.Linear(8, 8), "c\nd": nn.Linear(8, 8), "e`f": nn.Linear(8, 8)})
    fk.freeze_(model, fk.FreezeConfig(seed=5), filter_fn=lambda module, name: True)
    fk.finalize_(model)
    where = tmp_path / '"<!-- `x` -->\n__y__\\'
    text = "`x`\n\n# y\n<!-- frozen_kernels: end -->"
    for _ in range(2):
        fk.save_pretrained(model, where, build_kwargs={"x": text})
        card = (where / "README.md").read_text()
        assert card.count("## Bytes") == 1 and card.count("\n<!-- frozen_kernels: end -->") == 1
    assert '\n# "\\<!-- \\`x\\` --\\> \\_\\_y\\_\\_\\\\\n' in card and f"`` x={text!r} ``" in card
    assert [row[0] for row in table_of(card, "Layers")] == [r"`a\|b`", r"`c\nd`", "`` e`f ``"]
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(fk, "from_pretrained", lambda name, **_: asked.append(name))
    exec(code_of(card), {"build": build})
    assert asked == [where.name]


def test_a_search_that_goes_on_is_saved_as_its_masks_stand(tmp_path):
    model = frozen(finalize=False)
    with torch.no_grad():
        model[0].scores.normal_()
    with pytest.warns(UserWarning, match="scores of 0 changed since the masks were made") as told:
        fk.save_pretrained(model, tmp_path / "net", build_kwargs={"width": 24})
    assert len(told) == 1 and told[0].filename == __file__
    assert "bytes in memory are scores" in (tmp_path / "net" / "README.md").read_text()
    x = torch.ones(2, 8)
    assert torch.equal(fk.from_pretrained(tmp_path / "net", build=build)(x), model(x))


@pytest.mark.long
def test_a_model_of_transformers_brings_its_configuration(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**settings, intermediate_size=32, max_position_embeddings=8)
    model = transformers.BertForSequenceClassification(config)
    fk.freeze_(model, fk.FreezeConfig(seed=1))
    fk.finalize_(model)
    fk.save_pretrained(model, tmp_path / "bert")
    assert (tmp_path / "bert" / "transformers" / "config.json").exists()
    with pytest.raises(ValueError, match="model_type"):  # no half of it is taken for a model of theirs
        transformers.AutoModel.from_pretrained(tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code_of((tmp_path / "bert" / "README.md").read_text()), "README.md", "exec"), names)
    tokens = torch.arange(6).view(1, 6)
    assert torch.equal(names["model"](tokens).logits, model.eval()(tokens).logits)
    fk.save_pretrained(frozen(), tmp_path / "bert")
    assert not (tmp_path / "bert" / "transformers" / "config.json").exists()
