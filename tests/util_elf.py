"""Reads the symbols of ELF files, so that tests need no binutils."""

from __future__ import annotations

import struct

_SYMTAB, _DYNSYM = 2, 11
_UNDEFINED = 0


def symbols(data: bytes, *, dynamic: bool = False) -> dict[str, bool]:
    """Symbols of a little-endian ELF file of 32 or 64 bits: name → whether it is defined there."""
    assert data[:4] == b"\x7fELF" and data[5] == 1
    wide = data[4] == 2
    table, entry_size, count = (
        (struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58))
        if wide
        else (struct.unpack_from("<I", data, 32)[0], *struct.unpack_from("<HH", data, 46))
    )
    sections = []
    for index in range(count):
        fields = struct.unpack_from("<IIQQQQIIQQ" if wide else "<IIIIIIIIII", data, table + index * entry_size)
        sections.append((fields[1], fields[4], fields[5], fields[6]))  # type, offset, size, link
    found: dict[str, bool] = {}
    for kind, offset, size, link in sections:
        if kind != (_DYNSYM if dynamic else _SYMTAB):
            continue
        strings = sections[link][1]
        step = 24 if wide else 16
        for place in range(offset, offset + size, step):
            name_at = struct.unpack_from("<I", data, place)[0]
            section = struct.unpack_from("<H", data, place + (6 if wide else 14))[0]
            end = data.index(b"\0", strings + name_at)
            name = data[strings + name_at : end].decode()
            if name:
                found[name] = found.get(name, False) or section != _UNDEFINED
    return found


def undefined(data: bytes, *, dynamic: bool = False) -> set[str]:
    """Names that the file needs from elsewhere."""
    return {name for name, defined in symbols(data, dynamic=dynamic).items() if not defined}
