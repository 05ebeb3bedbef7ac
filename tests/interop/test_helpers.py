"""The suite's own tools do what they say: the proxy cuts where it was told, servers restart."""

from __future__ import annotations

import socket
import sys
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from tests.support.proxy import CuttingProxy
from tests.support.server import ServerError, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Listens as a server would, says where on stderr, and ignores what it is asked.
LISTENER = """
import os, socket, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
listener = socket.create_server(("127.0.0.1", port))
print("config read")
print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/files/", file=sys.stderr)
if os.environ.get("CHILD"):
    os.fork()
while True:
    listener.accept()
"""


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def _lines(proxy: CuttingProxy, peer: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port or 0))
    server, _ = peer.accept()
    for end in (client, server):
        end.settimeout(10)
    return client, server


def _everything(end: socket.socket) -> tuple[bytes, str]:
    got = bytearray()
    try:
        while data := end.recv(65536):
            got += data
    except ConnectionResetError:
        return bytes(got), "reset"
    except TimeoutError:
        return bytes(got), "silence"
    return bytes(got), "end"


@pytest.mark.parametrize(
    ("how", "heard"), [("reset", "reset"), ("close", "end"), ("abandon", "silence")]
)
def test_cut(how: str, heard: str, peer: socket.socket) -> None:
    """The server gets the bytes before the cut, not one more, and hears of it as it was asked."""
    with CuttingProxy(f"http://127.0.0.1:{peer.getsockname()[1]}/") as proxy:
        client, server = _lines(proxy, peer)
        with client, server:
            if how == "abandon":
                server.settimeout(0.3)
            proxy.cut_after(1000, how)  # type: ignore[arg-type]
            client.sendall(b"x" * 5000)
            proxy.wait_cut()
            assert _everything(server) == (b"x" * 1000, heard)
            assert _everything(client)[1] in {"reset", "end"}  # the client hears of it in any case


def test_hold_and_release(peer: socket.socket) -> None:
    """A held line passes nothing on, and nothing is lost when it is released."""
    with CuttingProxy(f"http://127.0.0.1:{peer.getsockname()[1]}/") as proxy:
        client, server = _lines(proxy, peer)
        with client, server:
            proxy.hold_after(1000)
            sender = threading.Thread(target=client.sendall, args=(b"x" * 5000,))
            sender.start()
            proxy.wait_held()
            assert server.recv(5000, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"x" * 1000
            proxy.release()
            sender.join()
            client.shutdown(socket.SHUT_WR)
            assert _everything(server) == (b"x" * 4000, "end")


def test_hold_and_leave(peer: socket.socket) -> None:
    """A client that goes while it is held is seen to go, though it had sent more."""
    with CuttingProxy(f"http://127.0.0.1:{peer.getsockname()[1]}/") as proxy:
        client, server = _lines(proxy, peer)
        with server:
            proxy.hold_after(1000)
            client.sendall(b"x" * 5000)
            proxy.wait_held()
            client.close()
            assert _everything(server) == (b"x" * 1000, "end")


def test_flip_and_heads(peer: socket.socket) -> None:
    """One bit changes; heads are seen, also behind a body that ends like a method."""
    first = b"PATCH /a HTTP/1.1\r\nUpload-Offset: 7\r\nHost: h\r\n\r\n"
    second = b"POST /b HTTP/1.1\r\nHost: h\r\n\r\n"
    with CuttingProxy(f"http://127.0.0.1:{peer.getsockname()[1]}/") as proxy:
        client, server = _lines(proxy, peer)
        with client, server:
            proxy.flip_after(len(first) + 1)
            client.sendall(first + b"xxG" + second)
            client.shutdown(socket.SHUT_WR)
            assert _everything(server) == (first + b"xyG" + second, "end")
            server.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nA: b\r\n\r\n")
            server.close()
            _everything(client)
        assert [(r.method, r.target, r.offset) for r in proxy.requests] == [
            ("PATCH", "/a", 7),
            ("POST", "/b", -1),
        ]
        assert [(r.status, r.fields) for r in proxy.responses] == [(100, {}), (204, {"a": "b"})]


def test_server_restarts_on_its_port(tmp_path: Path) -> None:
    """The address stays the same over a graceful stop and a kill."""
    with ServerProcess(tmp_path, command=(sys.executable, "-c", LISTENER)) as server:
        url, pid = server.url, server.pid
        assert url.endswith(f":{server.port}/files/")
        assert server.restart().url == url
        assert server.restart(kill=True).url == url
        assert server.pid != pid
        assert "config read" in server.tail()
    assert not server.running


def test_server_kill_ends_its_children(tmp_path: Path) -> None:
    """What the server started goes with it: nothing keeps the port."""
    server = ServerProcess(
        tmp_path, command=(sys.executable, "-c", LISTENER), env={"CHILD": "yes"}
    ).start()
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    with server.start():
        assert server.running


def test_server_that_does_not_start(tmp_path: Path) -> None:
    """A server that dies at once is told with what it said."""
    command = (sys.executable, "-c", "raise SystemExit('no such store')")
    with pytest.raises(ServerError, match=r"ended with 1(.|\n)*no such store"):
        ServerProcess(tmp_path, command=command).start()
