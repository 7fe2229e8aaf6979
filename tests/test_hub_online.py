"""Shared tickets in repositories: huggingface_hub's own client against a hub on this machine, and its mixin."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hub_server import serving
from test_hub import build, code_of, front_matter, frozen
from torch import nn

import frozen_kernels as fk
from frozen_kernels.hub import FolderError, TicketHubMixin

hub_client = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """A hub that the client talks to, with a cache of its own."""
    constants = hub_client.constants
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield server


X = torch.linspace(-1, 1, 16).view(2, 8)


def load(name="somebody/net", **given):
    return fk.from_pretrained(name, **{"build": build, "token": False, **given})


def test_what_is_pushed_is_loaded(hub):
    model = frozen()
    address = fk.push_to_hub(
        model, "net", build="test_hub:build", build_kwargs={"width": 24}, license="mit", tags=["tiny"], private=True,
        commit_message="First", token="hf_secret",
    )  # fmt: skip
    assert address.startswith(f"{hub.address}/somebody/net/commit/") and hub.messages == ["First"]
    assert set(hub.tokens) == {"Bearer hf_secret"} and hub.private == {"somebody/net": True}
    files = hub.commits["somebody/net"][-1]
    assert sorted(files) == ["README.md", "config.json", "ticket.safetensors"]
    card = files["README.md"].decode()
    assert 'fk.from_pretrained("somebody/net", build=build)' in card and "# somebody/net\n" in card
    assert front_matter(card)["tags"] == ["frozen-kernels", "tiny"]
    assert hub_client.ModelCard(card).data.license == "mit"
    hub.tokens.clear()
    assert torch.equal(load(token="hf_reader")(X), model(X)) and set(hub.tokens) == {"Bearer hf_reader"}
    names: dict = {}
    exec(compile(code_of(card), "README.md", "exec"), names)
    assert torch.equal(names["model"](X), model(X))
    fk.push_to_hub(model, "somebody/net", ignore_patterns="README.md", license="apache-2.0", token="hf_secret")
    assert hub.commits["somebody/net"][-1]["README.md"] == files["README.md"]


def test_a_wrong_model_makes_no_repository(hub):
    with pytest.raises(ValueError, match="model: no frozen layers"):
        fk.push_to_hub(build(), "somebody/net", token="hf_secret")
    with pytest.raises(TypeError, match=r"model: a torch.nn.Module, got dict"):
        fk.push_to_hub({}, "somebody/net", token="hf_secret")
    with pytest.raises(TypeError, match="run_as_future"):
        fk.push_to_hub(frozen(), "somebody/net", token="hf_secret", run_as_future=True)
    assert hub.commits == {} and hub.tokens == []


def test_revisions_and_the_cache(hub, tmp_path):
    first, second = frozen(seed=1), frozen(seed=2)
    for model in (first, second):
        fk.push_to_hub(model, "somebody/net", build_kwargs={"width": 24}, token="hf_secret")
    old, new = (hub.commit_of("somebody/net", number) for number in (1, 2))
    assert torch.equal(load()(X), second(X)) and torch.equal(load(revision=old)(X), first(X))
    # the configs are the same bytes, which the cache knows
    assert sorted(hub.downloads) == ["config.json", "ticket.safetensors", "ticket.safetensors"]
    hub.downloads.clear()
    assert torch.equal(load(revision=new)(X), second(X)) and hub.downloads == []
    load(force_download=True)
    assert hub.downloads == ["config.json", "ticket.safetensors"]
    load(cache_dir=tmp_path / "other")
    assert (tmp_path / "other" / "models--somebody--net" / "snapshots" / new / "ticket.safetensors").exists()
    hub.tokens.clear()
    assert torch.equal(load(local_files_only=True)(X), second(X)) and hub.tokens == []
    with pytest.raises(hub_client.errors.LocalEntryNotFoundError):
        load("somebody/other", local_files_only=True)
    with pytest.raises(
        hub_client.errors.LocalEntryNotFoundError, match=r"^my-nett: no such folder here, .* not be reached"
    ):
        load("my-nett", local_files_only=True)
    with pytest.raises(hub_client.errors.RevisionNotFoundError):
        load(revision="no-such-branch")
    with pytest.raises(hub_client.errors.RepositoryNotFoundError, match="somebody/other: no such folder here, either"):
        load("somebody/other")


def test_what_was_downloaded_loads_without_a_network(hub, monkeypatch):
    model = frozen()
    fk.push_to_hub(model, "somebody/net", build_kwargs={"width": 24}, token="hf_secret")
    load()
    hub.tokens.clear()
    monkeypatch.setattr(hub_client.constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets
    assert torch.equal(load()(X), model(X))
    with pytest.raises(hub_client.errors.LocalEntryNotFoundError):
        load("somebody/other")
    assert hub.tokens == []


def test_the_ticket_is_of_the_commit_of_the_config(hub, monkeypatch):
    """The branch moves on while a reader has the config and not yet the ticket."""
    wide = frozen(32)
    fk.push_to_hub(frozen(), "somebody/net", build_kwargs={"width": 24}, token="hf_secret")
    asked = hub_client.hf_hub_download

    def moving(repo, name, **given):
        path = asked(repo, name, **given)
        if name == "config.json":
            fk.push_to_hub(wide, "somebody/net", build_kwargs={"width": 32}, token="hf_secret")
        return path

    monkeypatch.setattr(hub_client, "hf_hub_download", moving)
    assert load()[0].out_features == 24
    monkeypatch.undo()


def test_repositories_of_something_else_are_told_of(hub):
    hub.create("somebody/net", False)
    hub.add("somebody/net", {"model.safetensors": b"123"})
    with pytest.raises(FolderError, match=r"somebody/net: expected config.json, as push_to_hub writes; .* has none"):
        load()
    hub.add("somebody/net", {"config.json": b'{"model_type": "bert"}'})
    with pytest.raises(FolderError, match=r"config.json: library_name: expected 'frozen_kernels', got None.*'bert'"):
        load()
    ours = {"library_name": "frozen_kernels", "layout": 1, "ticket": "ticket.safetensors"}
    hub.add("somebody/net", {"config.json": json.dumps(ours).encode()})
    with pytest.raises(FolderError, match=r"somebody/net: expected ticket.safetensors, .* the repository has none"):
        load()
    hub.add("somebody/net", {"ticket.safetensors": b"123"})
    with pytest.raises(fk.TicketError, match=r"ticket.safetensors: no safetensors file"):
        load(build=lambda: build())
    with pytest.raises(FolderError, match="names no build; pass build="):
        fk.from_pretrained("somebody/net", token=False)


class Net(nn.Module, TicketHubMixin, license="mit", tags=["tiny"]):
    def __init__(self, width: int = 24, bias: bool = True):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width, bias=bias), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)


@dataclasses.dataclass
class Sizes:
    width: int
    outputs: int = 3


class Sized(nn.Module, TicketHubMixin):
    def __init__(self, config: Sizes):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(8, config.width), nn.Linear(config.width, config.outputs))

    def forward(self, x):
        return self.layer(x)


# the annotation as a type: `from __future__ import annotations` makes it text, which the client does not resolve
Sized._hub_mixin_init_parameters = {
    name: parameter.replace(annotation=Sizes) if name == "config" else parameter
    for name, parameter in Sized._hub_mixin_init_parameters.items()
}


class Beside(Sized):
    def __init__(self, config: Sizes, act: object = None):
        super().__init__(config)


class Described(nn.Module, TicketHubMixin):
    def __init__(self, config: dict):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(8, config["width"]), nn.Linear(config["width"], 3))

    def forward(self, x):
        return self.layer(x)


def ready(model):
    fk.freeze_(model, fk.FreezeConfig(seed=3))
    fk.finalize_(model)
    return model.eval()


@pytest.mark.parametrize(
    ("made", "saved"),
    [
        (lambda: Net(40), {"width": 40, "bias": True}),
        (lambda: Net(bias=False), {"width": 24, "bias": False}),
        (lambda: Sized(Sizes(16)), {"config": {"width": 16, "outputs": 3}}),
        (lambda: Described({"width": 20}), {"width": 20}),
    ],
)
def test_the_mixin_saves_what_its_model_was_made_with(tmp_path, made, saved):
    model = ready(made())
    assert model.save_pretrained(tmp_path / "net") is None
    kind = type(model)
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["build_kwargs"] == saved and config["build"] == f"test_hub_online:{kind.__name__}.from_hub_config"
    for loaded in (
        kind.from_pretrained(tmp_path / "net", residency="planes"),
        fk.from_pretrained(tmp_path / "net", trust=True),
        fk.from_pretrained(tmp_path / "net", build=kind.from_hub_config),
    ):
        assert type(loaded) is kind and torch.equal(loaded(X), model(X)) and not loaded.training


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Beside(Sizes(8), 3), r"^Beside.__init__: 'act' is not saved beside config, which is a dataclass"),
        (lambda: Net(40, nn.ReLU()), "^Net.__init__: 'bias' is of type ReLU, which JSON cannot hold"),
        (lambda: Net(40, bias=(1, 2)), r"^Net.__init__: 'bias' is \(1, 2\); from JSON it comes back as \[1, 2\]"),
    ],
)
def test_the_mixin_refuses_arguments_that_it_cannot_save(tmp_path, made, told):
    model = ready(made())
    with pytest.raises(ValueError, match=told):
        model.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=r"^config: 'width' is \(1,\)"):
        model.save_pretrained(tmp_path / "net", config={"width": (1,)})
    assert not (tmp_path / "net").exists()
    if isinstance(model, Net):
        model.save_pretrained(tmp_path / "net", config={"width": 40})
        assert Net.from_pretrained(tmp_path / "net", bias=True).layers[0].out_features == 40


def test_the_mixin_pushes_and_loads(hub, tmp_path):
    model = ready(Net(40))
    address = model.push_to_hub("net", token="hf_secret", model_card_kwargs={"language": "en"})
    assert address.startswith(f"{hub.address}/somebody/net/commit/")
    card = hub.commits["somebody/net"][-1]["README.md"].decode()
    assert front_matter(card)["license"] == "mit" and front_matter(card)["language"] == "en"
    assert set(front_matter(card)["tags"]) == {"frozen-kernels", "model_hub_mixin", "tiny"}
    assert torch.equal(Net.from_pretrained("somebody/net", token=False)(X), model(X))
    with pytest.raises(fk.TicketError, match=r"shape \[40, 8\] in the ticket, \[41, 8\] in the model"):
        Net.from_pretrained("somebody/net", token=False, width=41)
    again = model.save_pretrained(tmp_path / "net", repo_id="somebody/net", push_to_hub=True, token="hf_secret")
    assert again.startswith(hub.address) and Path(tmp_path / "net" / "README.md").read_text().count("somebody/net") == 2
    assert "# Net\n" in str(model.generate_model_card())


def test_a_class_that_no_other_process_can_import_is_not_named(tmp_path):
    class Here(Net):
        pass

    ready(Here(40)).save_pretrained(tmp_path / "net")
    assert json.loads((tmp_path / "net" / "config.json").read_text())["build"] is None
    assert Here.from_pretrained(tmp_path / "net").layers[0].out_features == 40
