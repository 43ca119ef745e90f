"""A proxy in front of a store that can do what networks and sick servers do."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from enum import Enum

_READ_BYTES = 1 << 16
_LOOK_S = 0.05
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsick\n"


class Mode(Enum):
    """What becomes of what is sent."""

    THROUGH = "through"
    REFUSE = "refuse"  # connections are reset
    HANG = "hang"  # nothing arrives, nothing is answered
    SICK = "sick"  # 500, whatever is asked
    DEAF = "deaf"  # all of it arrives, and no answer comes back
    CUT = "cut"  # the connection breaks in the middle of what is sent


class Proxy:
    """Passes connections on to a port of this machine.

    Args:
        target: That port; it may change.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._mode = Mode.THROUGH
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: Mode) -> None:
        """Do something else from now on; connections that were treated otherwise break."""
        self._mode = mode
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Listen no longer."""
        self.set(Mode.REFUSE)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        mode = self._mode
        with self._lock:
            self._open.add(client)
        with contextlib.suppress(OSError), client:
            if mode is Mode.SICK:
                client.recv(_READ_BYTES)
                client.sendall(_ERROR)
            elif mode is Mode.HANG:
                client.settimeout(None)
                while self._mode is mode and client.recv(_READ_BYTES):
                    pass
            elif mode is not Mode.REFUSE:
                self._relay(client, mode)
        with self._lock:
            self._open.discard(client)

    def _relay(self, client: socket.socket, mode: Mode) -> None:
        with socket.create_connection(("127.0.0.1", self.target)) as server, selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ)
            ready.register(server, selectors.EVENT_READ)
            left = 3 * _READ_BYTES // 2 if mode is Mode.CUT else None
            while self._mode is mode:
                for key, _ in ready.select(_LOOK_S):
                    raw = key.fileobj.recv(_READ_BYTES)  # type: ignore[union-attr]  # it is a socket
                    if not raw:
                        return
                    if key.fileobj is server:
                        if mode is not Mode.DEAF:
                            client.sendall(raw)
                        continue
                    if left is not None:
                        raw, left = raw[:left], left - len(raw)
                    server.sendall(raw)
                    if left is not None and left <= 0:
                        return
