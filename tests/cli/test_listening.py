"""The socket that servers listen on."""

from __future__ import annotations

import contextlib
import socket

from haulier.cli.echo import listen


def test_an_answer_in_two_parts_does_not_wait_for_an_acknowledgement():
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
