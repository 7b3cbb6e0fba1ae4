import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest
import torch
from huggingface_hub import constants

from speechclip.encoders import load_encoder
from speechclip.encoders.weights import find_folder, is_hub_reachable, read_tensors, weights_digest
from speechclip.errors import InvalidInput


@pytest.fixture
def serve(monkeypatch):
    """A function that starts a hub on this machine, which gives that answer or none. All are stopped at the end."""
    servers = []

    def start(status):
        class Hub(BaseHTTPRequestHandler):
            def do_HEAD(self):
                if status is None:
                    time.sleep(1)
                    return
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "is_reachable"), [(200, True), (404, True), (503, False), (None, False)])
def test_the_hub_counts_as_reachable_where_it_answers(serve, status, is_reachable):
    serve(status)
    assert is_hub_reachable(timeout_seconds=0.3) is is_reachable


def test_a_hub_that_can_not_be_reached_gives_one_sentence_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(InvalidInput, match="can't be reached") as refusal:
        load_encoder("hubert:facebook/hubert-base-ls960", "speech")
    assert time.monotonic() - start < 6
    assert "\n" not in str(refusal.value)
    assert "hubert:untrained-base" in str(refusal.value)


def test_offline_mode_asks_no_one(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "not an address")
    assert not is_hub_reachable()


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-folder", "a/b/c", "../x/y"])
def test_a_folder_that_is_not_there_is_refused(name):
    with pytest.raises(InvalidInput, match="no folder"):
        load_encoder(f"hubert:{name}", "speech")


def test_a_folder_without_config_or_weights_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"no config\.json"):
        find_folder(str(tmp_path), "hubert:x", ["untrained-tiny"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"none of model\.safetensors"):
        find_folder(str(tmp_path), "hubert:x", ["untrained-tiny"]).read_tensors()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidInput, match="not JSON"):
        load_encoder(f"hubert:{tmp_path}", "speech")


class RunsCode:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    torch.save({"weight": RunsCode()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="convert it to safetensors"):
        read_tensors(tmp_path / "pytorch_model.bin")


def test_the_digest_sees_every_byte_name_shape_and_type_and_no_order():
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}
    digest = weights_digest(weights)
    assert digest == weights_digest({"b": torch.zeros(2), "a": torch.arange(6.0).reshape(3, 2).T.T.reshape(2, 3)})
    assert digest == weights_digest(weights | {"a": weights["a"].T.contiguous().T})
    others = [
        {"c": weights["a"], "b": weights["b"]},
        weights | {"a": weights["a"].reshape(3, 2)},
        weights | {"b": torch.zeros(2, dtype=torch.int32)},
        weights | {"b": torch.tensor([0.0, 1e-30])},
    ]
    assert len({digest, *map(weights_digest, others)}) == 1 + len(others)
