"""Frames: what is sent is found again, whatever lies around it; nothing else is found."""

from __future__ import annotations

import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from xnorc.runtimes.fpga.link.protocol import OVERHEAD, Frame, FrameReader, crc8

frames = st.builds(Frame, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300))


def test_layout_of_a_frame() -> None:
    data = Frame(5, 2, b"ab").encode()
    assert data[:6] == bytes([0x7E, 2, 0, 5, 2, crc8(b"\x02\x00\x05\x02")]) and data[6:8] == b"ab"
    assert data[8:] == zlib.crc32(data[1:8]).to_bytes(4, "little") and len(data) == OVERHEAD + 2


def test_crc8_check_value() -> None:
    assert crc8(b"123456789") == 0xF4, "the published check value of CRC-8/SMBUS"


@settings(deadline=None)
@given(st.lists(frames, max_size=5), st.integers(1, 40))
def test_frames_are_found_in_any_pieces(sent: list[Frame], piece: int) -> None:
    data, reader, found = b"".join(frame.encode() for frame in sent), FrameReader(), []
    for start in range(0, len(data), piece):
        found += reader.feed(data[start : start + piece])
    assert found == sent and reader.skipped == 0


@settings(deadline=None)
@given(frames, st.binary(max_size=200), frames)
def test_a_frame_behind_garbage_is_found(first: Frame, garbage: bytes, second: Frame) -> None:
    reader = FrameReader()
    found = [*reader.feed(first.encode() + garbage + second.encode()), *reader.give_up()]
    assert found[0] == first and found[-1] == second


@settings(deadline=None)
@given(frames, st.data())
def test_a_changed_byte_is_noticed(frame: Frame, data: st.DataObject) -> None:
    sent = bytearray(frame.encode())
    sent[data.draw(st.integers(0, len(sent) - 1))] ^= data.draw(st.integers(1, 255))
    reader = FrameReader()
    assert [*reader.feed(bytes(sent)), *reader.give_up()] == [], "one burst of up to 8 bits: CRC-32 finds every one"


@settings(deadline=None)
@given(frames, st.data())
def test_after_a_lost_byte_the_next_frame_is_found(frame: Frame, data: st.DataObject) -> None:
    sent = bytearray(frame.encode())
    del sent[data.draw(st.integers(0, len(sent) - 1))]
    reader, after = FrameReader(), Frame(1, 2, b"after")
    assert [*reader.feed(bytes(sent) + after.encode()), *reader.give_up()] == [after]
