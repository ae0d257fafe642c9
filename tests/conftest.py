"""Fixtures that several folders use."""

from tests.runtimes.sshd import server

__all__ = ["server"]
