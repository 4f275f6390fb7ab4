"""An NBD server is believed nothing: whatever it says gives what was asked for, or a typed error."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amistore import MIB, BackendError
from amistore.disks.nbdclient import NbdClient
from amistore.wire import nbd

SIZE = 3 * MIB
CONTEXT = 7


def reply(option: int, kind: int, content: bytes = b"", length: int | None = None) -> bytes:
    length = len(content) if length is None else length
    return nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, option, kind, length) + content


def chunk(
    kind: int, content: bytes = b"", *, cookie: int = 1, flags: int = 1, length: int | None = None
) -> bytes:
    length = len(content) if length is None else length
    return nbd.STRUCTURED_REPLY.pack(nbd.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length) + content


def data(offset: int, content: bytes) -> bytes:
    return struct.pack(">Q", offset) + content


def states(*pairs: tuple[int, int], context: int = CONTEXT) -> bytes:
    return struct.pack(">I", context) + b"".join(nbd.EXTENT.pack(*pair) for pair in pairs)


GREETED = nbd.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, 3)
STRUCTURED = reply(nbd.Option.STRUCTURED_REPLY, nbd.Reply.ACK)
META = nbd.Option.SET_META_CONTEXT
CONTEXTS = reply(META, nbd.Reply.META_CONTEXT, struct.pack(">I", CONTEXT) + b"base:allocation") + reply(
    META, nbd.Reply.ACK
)
DISK = struct.pack(">HQH", nbd.Info.EXPORT, SIZE, nbd.FLAG_PRESENT | nbd.FLAG_SEND_DF)
GONE = reply(nbd.Option.GO, nbd.Reply.INFO, DISK) + reply(nbd.Option.GO, nbd.Reply.ACK)
OPENED = GREETED + STRUCTURED + CONTEXTS + GONE


@contextmanager
def client(said: bytes) -> Iterator[NbdClient]:
    """Of a server that has said all this already, and has ended."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        yield NbdClient(ours)


def read(said: bytes) -> bytes:
    with client(OPENED + said) as connected:
        return connected.read(512, 4)


def asked(said: bytes, offset: int = MIB) -> list[tuple[int, int]]:
    with client(OPENED + said) as connected:
        return list(connected.states(offset))


def test_a_server_s_answers_are_what_was_asked_for() -> None:
    with client(
        OPENED + chunk(1, data(0, b"disk")) + chunk(2, struct.pack(">QI", 8, 3), cookie=2)
    ) as connected:
        assert connected.size == SIZE
        assert connected.read(0, 4) == b"disk"
        assert connected.read(8, 3) == bytes(3)
    assert read(chunk(1, data(512, b"disk"), flags=0) + chunk(0)) == b"disk"
    assert asked(chunk(5, states((MIB, 3), (MIB, 0)))) == [(MIB, 3), (MIB, 0)]


def test_the_last_state_may_reach_further_than_the_question_and_is_cut_at_the_disk_s_end() -> None:
    assert asked(chunk(5, states((2**32 - 1, 3)))) == [(2 * MIB, 3)]
    assert asked(chunk(5, states((512, 1)))) == [(512, 1)]


@pytest.mark.parametrize(
    "said",
    {
        "nothing": b"",
        "another magic": nbd.GREETING.pack(1, nbd.OPTION_MAGIC, 3),
        "the old handshake": nbd.GREETING.pack(nbd.INIT_MAGIC, 0x420281861253, 3),
        "no fixed handshake": nbd.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, 2),
        "no structured replies": GREETED + reply(nbd.Option.STRUCTURED_REPLY, nbd.Reply.ERR_UNSUP),
        "another option's answer": GREETED + reply(nbd.Option.LIST, nbd.Reply.ACK),
        "an answer of 4 GiB": GREETED + reply(nbd.Option.STRUCTURED_REPLY, 1, length=2**32 - 1),
        "no states": GREETED + STRUCTURED + reply(META, nbd.Reply.ACK),
        "other states": GREETED + STRUCTURED + reply(META, nbd.Reply.META_CONTEXT, b"\0\0\0\1qemu:all"),
        "short states": GREETED + STRUCTURED + reply(META, nbd.Reply.META_CONTEXT, b"\0"),
        "states without end": GREETED + STRUCTURED + CONTEXTS[:39] * 100,
        "no disk": GREETED + STRUCTURED + CONTEXTS + reply(nbd.Option.GO, nbd.Reply.ACK),
        "a disk in fragments": GREETED
        + STRUCTURED
        + CONTEXTS
        + reply(nbd.Option.GO, nbd.Reply.INFO, struct.pack(">HQH", 0, SIZE, 1))
        + reply(nbd.Option.GO, nbd.Reply.ACK),
        "a disk of another form": GREETED
        + STRUCTURED
        + CONTEXTS
        + reply(nbd.Option.GO, nbd.Reply.INFO, DISK + b"x"),
        "a policy": GREETED + STRUCTURED + CONTEXTS + reply(nbd.Option.GO, nbd.Reply.ERR_POLICY, b"not you"),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_a_server_that_opens_no_disk_is_refused(said: tuple[str, bytes]) -> None:
    with pytest.raises(BackendError, match="NBD server"), client(said[1]):
        pass


READS = {
    "another cookie": chunk(1, data(512, b"disk"), cookie=2),
    "another magic": nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 1) + bytes(50),
    "another offset": chunk(1, data(511, b"disk")),
    "less": chunk(1, data(512, b"dis")),
    "more": chunk(1, data(512, b"disks")),
    "4 GiB": chunk(1, length=2**32 - 1),
    "a hole of 4 GiB": chunk(2, struct.pack(">QI", 512, 2**32 - 1)),
    "a hole of nothing": chunk(2, struct.pack(">QI", 512, 0)),
    "a long hole": chunk(2, length=13),
    "nothing": chunk(0),
    "content at the end": chunk(0, b"x"),
    "twice": chunk(1, data(512, b"disk"), flags=0) * 2 + chunk(0),
    "no end": chunk(1, data(512, b"disk"), flags=0) + chunk(0, flags=0) * 9,
    "states": chunk(5, states((4, 0))),
    "an unknown chunk": chunk(77),
    "a long error": chunk(nbd.Chunk.ERROR, length=2**32 - 1),
    "a short error": chunk(nbd.Chunk.ERROR, b"x"),
    "an error": chunk(nbd.Chunk.ERROR, struct.pack(">IH", 5, 4) + b"lost"),
    "an error behind data": chunk(1, data(512, b"disk"), flags=0) + chunk(nbd.Chunk.ERROR, b"\0\0\0\5\0\0"),
}
STATES = {
    "nothing": chunk(0),
    "no state": chunk(5, states()),
    "a state of nothing": chunk(5, states((0, 3))),
    "half a state": chunk(5, states((4, 0)) + b"xxxx"),
    "states behind the question": chunk(5, states((2 * MIB, 0), (512, 0))),
    "another context": chunk(5, states((4, 0), context=8)),
    "twice": chunk(5, states((4, 0)), flags=0) + chunk(5, states((4, 0))),
    "4 GiB of states": chunk(5, length=2**32 - 4),
    "data": chunk(1, data(MIB, b"disk")),
}


@pytest.mark.parametrize(
    ("ask", "said"),
    [*((read, said) for said in READS.values()), *((asked, said) for said in STATES.values())],
    ids=[*READS, *(f"{name} for states" for name in STATES)],
)
def test_an_answer_to_something_else_is_refused(ask: Callable[[bytes], Any], said: bytes) -> None:
    with pytest.raises(BackendError, match=r"breaks the protocol|cannot READ"):
        ask(said)


@given(st.data())
def test_changed_bytes_give_an_answer_or_a_typed_error(data_: st.DataObject) -> None:
    said = bytearray(OPENED + chunk(1, data(512, b"disk")) + chunk(5, states((MIB, 3), (MIB, 0)), cookie=2))
    for _ in range(data_.draw(st.integers(1, 3))):
        said[data_.draw(st.integers(0, len(said) - 1))] = data_.draw(st.integers(0, 255))
    said = said[: data_.draw(st.integers(0, len(said)) | st.just(len(said)))]
    try:
        with client(bytes(said)) as connected:
            assert len(connected.read(512, 4)) == 4
            if connected.size > MIB:  # nobody asks behind the end
                assert sum(length for length, _ in connected.states(MIB)) <= connected.size - MIB
    except BackendError:
        pass


@given(st.binary(max_size=300), st.sampled_from([b"", GREETED, GREETED + STRUCTURED + CONTEXTS, OPENED]))
def test_any_bytes_give_a_typed_error(said: bytes, before: bytes) -> None:
    with pytest.raises(BackendError), client(before + said) as connected:
        connected.read(0, 512)
