"""The host's side against boards that answer well, badly, late, or not at all. The board here is a few lines of Python."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fpga.noise import Noise
from xnorc.errors import DeviceError
from xnorc.runtimes.device import DeviceGone
from xnorc.runtimes.fpga.link import Client, Command, Frame, FrameReader
from xnorc.runtimes.fpga.link.client import PortError
from xnorc.runtimes.fpga.link.protocol import HELLO, STATUS

PATIENCE = 0.01


class Board:
    """A port with a board that inverts images of 3 bytes; ``edit`` may change what it answers to the n-th frame."""

    name, baud = "serial:///dev/fake", 0

    def __init__(self, edit: Callable[[int, Frame], Frame | bytes | None] = lambda number, reply: reply) -> None:
        self.reader, self.edit, self.answers, self.frames, self.closed = FrameReader(), edit, b"", 0, False

    def write(self, data: bytes) -> None:
        for frame in self.reader.feed(data):
            reply = self.edit(self.frames, Frame(frame.sequence, frame.command | 0x80, self.answer(frame)))
            self.frames += 1
            self.answers += reply.encode() if isinstance(reply, Frame) else reply or b""

    def answer(self, frame: Frame) -> bytes:
        if frame.command == Command.HELLO:
            return HELLO.pack(b"XNOR", 1, 0, 30, 64, b"d" * 16, 24, 24, 25_000_000)
        if frame.command == Command.STATUS:
            return STATUS.pack(12, self.frames, 0)
        return bytes(byte ^ 0xFF for byte in frame.payload)

    def read(self, seconds: float) -> bytes:
        data, self.answers = self.answers, b""
        if not data:
            time.sleep(seconds)
            self.reader.clear()  # the board's gap time is over
        return data

    def close(self) -> None:
        self.closed = True


def client(board: Board | Noise) -> Client:
    return Client(board, patience=PATIENCE)


def refused(board: Board | Noise) -> str:
    started = time.monotonic()
    with pytest.raises(DeviceError) as error:
        client(board).connect()
    assert time.monotonic() - started < 8 and "\n" not in str(error.value)
    assert "serial:///dev/fake" in str(error.value)
    return str(error.value)


def test_images_in_results_out() -> None:
    talker, seen = client(Board()), []
    board = talker.connect()
    assert (board.design, board.image_bytes, board.result_bytes, board.clock_hz) == (b"d" * 16, 3, 3, 25_000_000)
    images = bytes(range(93))
    assert talker.run(board, images, 31, seen.append) == bytes(byte ^ 0xFF for byte in images)
    assert seen == [10, 20, 30, 31] and talker.resent == 0
    assert talker.run(board, b"", 0) == b""
    assert talker.status().cycles == 12


def test_a_silent_board() -> None:
    assert "no answer to 8 requests: is the board on" in refused(Board(lambda number, reply: None))


def test_a_board_that_answers_garbage() -> None:
    text = refused(Board(lambda number, reply: b"\r\nlogin: ~~~"))
    assert "no valid reply to 8 requests, but 96 other bytes: is it this board, at this speed?" in text


def test_a_port_that_never_stops_talking() -> None:
    class Endless(Board):  # its bytes never let the line be quiet
        def read(self, seconds: float) -> bytes:
            time.sleep(0.0005)
            return b"ABC"

    assert "other bytes" in refused(Endless())


def test_a_board_that_refuses_everything() -> None:
    text = refused(Board(lambda number, reply: Frame(reply.sequence, 0xFF, b"\3")))
    assert "it refused a request 8 times, at last because the command is unknown" in text


@pytest.mark.parametrize(
    "hello, message",
    [
        ((b"DOOR", 1, 0, 30, 64, bytes(16), 24, 24, 1), "is not an xnorc board: it says b'DOOR'"),
        ((b"XNOR", 2, 0, 30, 64, bytes(16), 24, 24, 1), "speaks version 2 of the link, this xnorc 1"),
        ((b"XNOR", 1, 0, 30, 64, bytes(16), 0, 24, 1), "gives sizes that cannot be"),
        ((b"XNOR", 1, 0, 2, 64, bytes(16), 24, 24, 1), "gives sizes that cannot be"),
    ],
)
def test_a_board_that_says_impossible_things(hello: tuple, message: str) -> None:
    def edit(number: int, reply: Frame) -> Frame:
        return Frame(reply.sequence, reply.command, HELLO.pack(*hello)) if reply.command == 0x81 else reply

    assert message in refused(Board(edit))


def test_a_board_that_goes_silent_in_the_middle() -> None:
    talker = client(Board(lambda number, reply: reply if number < 6 else None))
    board = talker.connect()
    with pytest.raises(DeviceGone, match="after 40 of 100 inputs: no answer to 8 requests") as error:
        talker.run(board, bytes(300), 100)
    assert (error.value.done, error.value.total) == (40, 100)


def test_a_port_that_is_unplugged() -> None:
    def edit(number: int, reply: Frame) -> Frame:
        if number == 5:
            raise PortError("the port is gone: device disconnected")
        return reply

    talker = client(Board(edit))
    board = talker.connect()
    with pytest.raises(DeviceGone, match="inputs: the port is gone: device disconnected"):
        talker.run(board, bytes(300), 100)


def test_a_late_reply_is_not_taken_for_another() -> None:
    held: list[Frame] = []

    def edit(number: int, reply: Frame) -> Frame | bytes | None:
        """The third reply comes only together with the one to its repetition."""
        if number == 2:
            held.append(reply)
            return None
        return held.pop().encode() + reply.encode() if held and held[0].sequence == reply.sequence else reply

    talker, images = client(Board(edit)), bytes(range(150))
    board = talker.connect()
    assert talker.run(board, images, 50) == bytes(byte ^ 0xFF for byte in images)
    assert talker.resent == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 40))
def test_noise_changes_no_result(seed: int, count: int) -> None:
    talker = Client(Noise(Board(), 0.005, seed), patience=0.002, tries=50)
    board, images = talker.connect(), bytes(index % 256 for index in range(3 * count))
    assert talker.run(board, images, count) == bytes(byte ^ 0xFF for byte in images)
