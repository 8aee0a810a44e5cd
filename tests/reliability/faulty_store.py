"""A proxy in front of an S3 server that passes everything on, or answers 503, or hangs, or cuts connections."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress

REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CHUNK = 65536


class FaultyStore:
    """`fault`: "" (none), "503", "hang" or "cut". With a fault, connections that are open already are cut."""

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self.target, self.fault = (host, port), ""
        self.dice = random.Random(seed)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def begin(self, fault: str) -> None:
        self.fault = fault
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.begin("")  # those that hang are let go

    def close(self) -> None:
        self.server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self.open.add(client)
        try:
            if self.fault == "hang":
                while client.recv(CHUNK):
                    pass  # and never a word
            elif self.fault == "503":
                client.recv(CHUNK)
                client.sendall(REFUSAL)
            elif self.fault == "cut":
                self._pass_on(client, most=self.dice.randrange(200, 2000))
            else:
                self._pass_on(client)
        except OSError:
            pass  # cut from either side
        finally:
            self.open.discard(client)
            client.close()

    def _pass_on(self, client: socket.socket, most: int | None = None) -> None:
        """Both ways until one side ends; only `most` bytes of the answer, where it is given."""
        with socket.create_connection(self.target) as store:
            threading.Thread(target=self._copy, args=(client, store, None), daemon=True).start()
            self._copy(store, client, most)

    def _copy(self, source: socket.socket, target: socket.socket, most: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                target.sendall(data if most is None else data[:most])
                if most is not None:
                    most -= len(data)
                    if most <= 0:
                        break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
