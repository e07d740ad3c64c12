"""Weights from the hub: a real server on this machine answers as the hub does, and all refusals become plain words."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from core.models import build_backbone
from core.models.layouts import WeightsError
from core.models.published import PUBLISHED, download
from core.models.weights import load_backbone, save_backbone

ROOT = Path(__file__).parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "facebook/dinov3-vits16-pretrain-lvd1689m"


@dataclass
class Hub:
    """What the server knows: files by "repository/file", and answers that are not files."""

    files: dict[str, bytes] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # repository: status, X-Error-Code
    truncated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        repo, _, file = path.lstrip("/").partition("/resolve/main/")
        headers = {"X-Repo-Commit": COMMIT}
        self.asked.append(f"{repo}/{file}")
        if repo in self.refusals:
            status, code = self.refusals[repo]
            status = 403 if code == "GatedRepo" and token else status
            return status, {"X-Error-Code": code} if code else {}, b""
        if not any(name.startswith(f"{repo}/") for name in self.files):
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if f"{repo}/{file}" not in self.files:
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        body = self.files[f"{repo}/{file}"]
        return 200, headers | {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, but after the library has been imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of our own, to which `huggingface_hub` is pointed by its own settings, with an empty cache."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self, with_body: bool) -> None:
            status, headers, body = state.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                cut = any(self.path.endswith(name) for name in state.truncated)
                self.wfile.write(body[: len(body) // 2] if cut else body)

        def do_HEAD(self) -> None:
            self.respond(with_body=False)

        def do_GET(self) -> None:
            self.respond(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    point_to(state.endpoint, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def model_files(folder: Path, name: str = "dinov2_small") -> dict[str, bytes]:
    """The files of a small backbone in Hugging Face layout."""
    torch.manual_seed(0)
    small = {"depth": 1, "embed_dim": 64, "num_heads": 1} | ({"pos_grid": 3} if "dinov2" in name else {})
    save_backbone(build_backbone(name, **small), folder, "hf")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(source: str, match: str) -> str:
    with pytest.raises(WeightsError, match=match) as raised:
        load_backbone(source)
    return str(raised.value)


def test_a_published_name_is_downloaded_once_into_the_usual_cache(hub, tmp_path, monkeypatch):
    hub.files = {f"facebook/dinov2-small/{name}": body for name, body in model_files(tmp_path / "model").items()}
    backbone = load_backbone("dinov2_vits14")
    assert (backbone.source.name, backbone.source.layout) == ("dinov2_vits14", "hf")
    assert (backbone.source.licence, backbone.source.origin) == ("Apache-2.0", PUBLISHED["dinov2_vits14"].origin)
    assert str(backbone.source.path).startswith(str(tmp_path / "cache" / "models--facebook--dinov2-small"))
    hub.asked.clear()
    again = load_backbone("dinov2_vits14")
    assert torch.equal(again.cls_token, backbone.cls_token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    offline = load_backbone("dinov2_vits14")
    assert torch.equal(offline.cls_token, backbone.cls_token)
    assert hub.asked == []


def test_any_repository_is_a_source_and_carries_its_terms(hub, tmp_path):
    repo = "timm/vit_small_patch16_dinov3.lvd1689m"
    files = model_files(tmp_path / "model", "vit_nano")
    config = json.dumps({"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}).encode()
    hub.files = {f"{repo}/model.safetensors": files["model.safetensors"], f"{repo}/config.json": config}
    backbone = load_backbone(repo)
    assert backbone.source.licence == "DINOv3 License"
    assert backbone.source.origin == f"https://huggingface.co/{repo}"
    assert backbone.pixel_mean == (0.1, 0.2, 0.3)


def test_a_sharded_repository_comes_whole(hub, tmp_path):
    files = model_files(tmp_path / "model")
    weights = files.pop("model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"embeddings.cls_token": shard}}).encode()
    files |= {"model.safetensors.index.json": index, shard: weights}
    hub.files = {f"someone/large/{name}": body for name, body in files.items()}
    assert load_backbone("someone/large").embed_dim == 64
    assert {path.name for path in download("someone/large").iterdir()} == set(files)


def test_a_licence_gate_says_where_to_accept_and_what_is_free(hub, monkeypatch):
    hub.refusals[GATED] = (401, "GatedRepo")
    said = refused("dinov3_vits16", "licence gate and the hub answered 401: you are not logged in")
    for word in (
        f"https://huggingface.co/{GATED}",
        "hf auth login",
        "HF_TOKEN",
        "timm/vit_small_patch16_dinov3.lvd1689m",
        "dinov2_vits14",
    ):
        assert word in said
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_without_access")
    refused("dinov3_vits16", "the hub answered 403: your account has not been granted access")
    hub.refusals["someone/private"] = (403, "")
    refused("someone/private", "behind a licence gate and the hub answered 403")


def test_missing_repositories_and_files_are_told_apart(hub):
    refused("someone/nothing", "the hub has no repository 'someone/nothing', or it is private")
    hub.files["someone/words/README.md"] = b"no weights"
    refused("someone/words", r"'someone/words' holds neither model.safetensors nor model.safetensors.index.json")
    hub.refusals["someone/secret"] = (401, "")
    refused("someone/secret", "no repository|does not accept your token")
    hub.refusals["someone/teapot"] = (418, "")
    refused("someone/teapot", "the hub answered 418 for 'someone/teapot'; try later")


def test_a_cut_download_is_no_model(hub, tmp_path, monkeypatch):
    hub.files = {f"someone/model/{name}": body for name, body in model_files(tmp_path / "model").items()}
    hub.truncated = {"model.safetensors"}
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library waits between its own attempts
    refused("someone/model", "downloading 'someone/model' failed .*run it again")
    hub.truncated = set()
    assert load_backbone("someone/model").embed_dim == 64


def test_offline_mode_says_how_to_leave_it(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused(
        "dinov2_vits14", r"offline mode is on \(HF_HUB_OFFLINE\) and 'facebook/dinov2-small' is not in the cache"
    )
    assert str(tmp_path / "cache") in said
    assert "dinov2_vits14_saliency" in said
    assert hub.asked == []


def test_no_network_is_told_and_the_bundled_weights_need_none(hub, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", monkeypatch)
    refused("dinov2_vits14", f"http://127.0.0.1:{port} could not be reached .* load 'dinov2_vits14_saliency'")
    assert load_backbone("dinov2_vits14_saliency").embed_dim == 384


@pytest.mark.long
def test_the_settings_of_the_hub_library_reach_it_from_the_environment(hub, tmp_path):
    """In a process of its own, as users set them."""
    hub.files = {f"facebook/dinov2-small/{name}": body for name, body in model_files(tmp_path / "model").items()}
    hub.refusals[GATED] = (401, "GatedRepo")
    program = (
        "from core.models.weights import load_backbone, summary\n"
        "print(summary(load_backbone('dinov2_vits14')))\n"
        "try: load_backbone('dinov3_vits16')\n"
        "except ValueError as error: print(error)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("dinov2_vits14: VisionTransformer of width 64")
    assert "behind a licence gate" in second
    assert (tmp_path / "home" / "hub" / "models--facebook--dinov2-small").is_dir()
