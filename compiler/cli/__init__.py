"""The command line. ``main`` is the console script; every verb is in a module that is imported when it is called."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys

import click

from .common import INTERRUPTED, App, debug_option, examples, remember_interrupts, silence_libraries

_VERBS = {
    "export": "export",
    "explain": "model",
    "optimize": "model",
    "compile": "build",
    "bitstream": "bitstream",
    "run": "device",
    "validate": "validate",
    "bench": "device",
    "index": "index",
    "report": "report",
    "targets": "build",
}
"""Verb → module of this package; the order is that of the help."""


class _Lazy(App):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f".{_VERBS[cmd_name]}", __name__)
        return getattr(module, f"{cmd_name}_verb")


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .. import __version__

        click.echo(f"xnorc {__version__}")
        ctx.exit()


@debug_option
@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "xnorc compile model.onnx --target rpi4 -o model.xnorc", "xnorc validate model.xnorc --device qemu"
    ),
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def app() -> None:
    """Compile trained binary neural networks for small devices, and prove that the device computes what the model says.

    Exit codes: 0 good, 1 the check failed (validate found a mismatch), 2 bad input or usage, 130 interrupted.
    """


def main() -> None:
    """Run the command line and exit."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report to its maker
    silence_libraries()
    remember_interrupts()
    try:
        app.main(prog_name="xnorc")
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        # An interruption that hit a library's own evaluation of Python code would make Python end by the signal.
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(INTERRUPTED)
