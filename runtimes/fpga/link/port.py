"""A serial port as a port of the link, by pyserial."""

from __future__ import annotations

import errno
from typing import Any

from ....errors import DeviceError, ToolError
from .client import PortError

_WRITE_SECONDS = 2.0
_BITS_PER_BYTE = 10


class SerialPort:
    """``Port`` over ``path`` (``/dev/ttyUSB0``, ``COM3``) at ``baud``, which no other program may use meanwhile.

    Raises ``ToolError`` when pyserial is missing, ``DeviceError`` when the port is absent, busy or not allowed.
    """

    def __init__(self, path: str, baud: int, name: str | None = None) -> None:
        try:
            import serial
        except ImportError as error:
            raise ToolError("pyserial is missing: pip install 'xnorc[fpga]'") from error
        self.name, self.baud = name or f"serial://{path}", baud
        self._gone: tuple[type[BaseException], ...] = (OSError, *_termios_error())
        try:
            self._serial = serial.Serial(path, baud, timeout=0, exclusive=True)
            self._serial.reset_input_buffer()
        except Exception as error:
            if not isinstance(error, (ValueError, *self._gone)):
                raise
            raise DeviceError(f"device '{self.name}': {_refusal(error, path, baud)}") from error

    def write(self, data: bytes) -> None:
        """See ``Port``."""
        try:
            self._serial.write_timeout = _WRITE_SECONDS + 2 * len(data) * _BITS_PER_BYTE / self.baud
            self._serial.write(data)
        except self._gone as error:
            raise PortError(f"the port takes no bytes: {_short(error)}") from error

    def read(self, seconds: float) -> bytes:
        """See ``Port``."""
        try:
            self._serial.timeout = seconds
            first = self._serial.read(1)
            return first + self._serial.read(self._serial.in_waiting) if first else b""
        except self._gone as error:
            raise PortError(f"the port is gone: {_short(error)}") from error

    def close(self) -> None:
        """See ``Port``."""
        try:
            self._serial.close()
        except self._gone:
            return


def _termios_error() -> tuple[type[BaseException], ...]:
    """What pyserial lets through on a terminal that has gone, besides ``OSError``."""
    try:
        import termios
    except ImportError:
        return ()
    return (termios.error,)


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _refusal(error: BaseException, path: str, baud: int) -> str:
    """Why a port could not be opened, and what to do."""
    code: Any = getattr(error, "errno", None)
    text = _short(error)
    if code == errno.ENOENT or "FileNotFoundError" in text:
        return f"there is no port '{path}'{_others()}"
    if code in (errno.EACCES, errno.EPERM) or "PermissionError" in text:
        return f"no permission for '{path}': become a member of its group (dialout, uucp), or close what uses it"
    if code in (errno.EBUSY, errno.EAGAIN) or "lock" in text:
        return f"'{path}' is in use by another program"
    if isinstance(error, ValueError):
        return f"'{path}' cannot run at {baud} baud: {text}"
    return f"'{path}' cannot be opened: {text}"


def _others() -> str:
    """The ports that there are, for a message."""
    from serial.tools import list_ports

    found = sorted(port.device for port in list_ports.comports())
    return f"; there are {', '.join(found)}" if found else "; no serial port is connected"
