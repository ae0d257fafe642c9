"""What the verbs share: errors as one line, options, progress, tables and JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from ..errors import InputError, XnorcError
from ..report import size

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "FILE",
    "INTERRUPTED",
    "App",
    "check_writable",
    "console",
    "debug_option",
    "device_options",
    "examples",
    "forget_interrupt",
    "many",
    "model_options",
    "parse_sizes",
    "progress",
    "read_calibration",
    "read_feeds",
    "remember_interrupts",
    "sign_zero_value",
    "silence_libraries",
    "size",
    "table",
    "verb",
    "write_json",
]

F = TypeVar("F", bound=Callable[..., Any])

USAGE, INTERRUPTED = 2, 130
_WIDTH = 100


class _Interrupted(Exception):
    """Ctrl-C. Click would print a blank line before it passes a ``KeyboardInterrupt`` on."""


_ctrl_c = threading.Event()


def remember_interrupts() -> None:
    """Let Ctrl-C be noticed at the next stage even where a library swallows the ``KeyboardInterrupt``, as may happen to one
    that is raised inside a callback from C or while an object is finalized."""

    def interrupted(number: int, frame: object) -> NoReturn:
        _ctrl_c.set()
        raise KeyboardInterrupt

    # Not where whoever started us wants Ctrl-C ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def _stop_if_interrupted() -> None:
    if _ctrl_c.is_set():
        raise KeyboardInterrupt


def forget_interrupt() -> None:
    """The interruption was for a part of the work only, which has ended: go on."""
    _ctrl_c.clear()


class App(click.Group):
    """A group that ends every failure in one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; an interruption is an error like any other."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        """Run, and exit: 0 good, 1 check failed, 2 bad input or usage, 130 interrupted."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = USAGE
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx is not None else "xnorc"
            code = _fail(f"{_line(error.format_message())} (see {where} --help)", USAGE)
        except click.ClickException as error:
            code = _fail(_line(error.format_message()), USAGE)
        except XnorcError as error:
            code = _fail(_line(str(error)), error.exit_code, error)
        except (_Interrupted, click.Abort, KeyboardInterrupt):
            if sys.stderr.isatty():
                click.echo("\r", nl=False, err=True)  # over the ^C that the terminal shows
            code = _fail("interrupted", INTERRUPTED)
        except OSError as error:
            # stdout may be what failed: a full disk, or a reader that went away (`xnorc explain … | head`), which is no
            # error at all. Python would try to write what is left, and complain, on exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            where = f"'{error.filename}'" if error.filename else _unnamed(error)
            gone = isinstance(error, BrokenPipeError)
            code = 0 if gone else _fail(f"{where}: {error.strerror or error}", USAGE, error)
        except MemoryError as error:
            code = _fail("not enough memory", USAGE, error)
        except Exception as error:  # the last line of defence: whatever comes here is a defect
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            hint = "this is a defect of xnorc; --debug shows the traceback"
            code = _fail(f"{_line(text)[:500]} ({hint})", USAGE, error)
        sys.exit(code if isinstance(code, int) else 0)


def _unnamed(error: OSError) -> str:
    """What an error that names no file is about: temporary files, when their disk is the one that is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        import shutil
        import tempfile

        with contextlib.suppress(OSError):
            folder = tempfile.gettempdir()
            if shutil.disk_usage(folder).free < 1 << 20:
                return f"cannot write temporary files in '{folder}' (set TMPDIR to another folder)"
    return "cannot read or write"


def _line(text: str) -> str:
    return " ".join(text.split())


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and _debug:
        import traceback

        traceback.print_exception(error)
    click.echo(f"xnorc: error: {message}", err=True)
    return code


_debug = bool(os.environ.get("XNORC_DEBUG"))


def _set_debug(_: click.Context, __: click.Parameter, value: bool) -> None:
    global _debug
    _debug = _debug or value


def silence_libraries() -> None:
    """Keep what native libraries and Python's warnings write to stderr from the user; ``--debug`` shows it.

    The file descriptor goes to /dev/null, and ``sys.stderr``, which is xnorc's, to where it went. For the rest of the
    process: TVM prints when its objects are destroyed, too.
    """
    if _debug or "--debug" in sys.argv:
        return
    sys.unraisablehook = lambda _: None  # what goes wrong in a destructor, or an interruption that hits one
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
    try:
        ours = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        sys.stderr = os.fdopen(ours, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    except (OSError, AttributeError):  # no stderr at all
        return


def _debug_option() -> click.Option:
    """``--debug``: errors come with their traceback."""
    return click.Option(
        ["--debug"], is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show tracebacks."
    )


def debug_option(function: click.Group) -> click.Group:
    """Give a group ``--debug``."""
    function.params.append(_debug_option())
    return function


def examples(*commands: str) -> str:
    """The end of a help text."""
    return "\b\nFor example:\n" + "\n".join(f"  {command}" for command in commands)


def verb(name: str, short: str, *commands: str) -> Callable[[F], click.Command]:
    """Decorator: a verb of the command line. ``short``: its line in the list; ``commands``: examples that end its help.

    Its own options come first in the help, then those that all verbs have.
    """

    def decorate(function: F) -> click.Command:
        made = click.command(
            name,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH},
            short_help=short,
            epilog=examples(*commands),
        )(function)
        text = "Also write the facts to FILE, for machines."
        made.params += [click.Option(["--json", "json_file"], type=FILE, metavar="FILE", help=text), _debug_option()]
        return made

    return decorate


FILE = click.Path(path_type=Path)


class _Shape(click.ParamType):
    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, _, sizes = str(value).rpartition("=")
        try:
            shape = parse_sizes(sizes)
        except ValueError:
            self.fail(f"'{value}' is not of the form name=1,3,224,224", param, ctx)
        if not name:
            self.fail(f"'{value}' is not of the form name=1,3,224,224", param, ctx)
        return name, shape


def parse_sizes(text: str) -> tuple[int, ...]:
    """``"1,3,224,224"`` as a tuple. Raises ``ValueError`` unless every size is a positive whole number."""
    sizes = tuple(int(part) for part in text.split(","))
    if any(size < 1 for size in sizes):
        raise ValueError(text)
    return sizes


def model_options(function: F) -> F:
    """``--shape``, ``--sign-zero``, ``--float-layers``, ``--calibration`` and ``--shortcuts``."""
    function = click.option(
        "--shortcuts",
        type=click.Choice(["float32", "float16"]),
        default="float32",
        show_default=True,
        metavar="float32|float16",
        help="Store what a residual block hands to the next one's sum in float32, or rounded to float16. float16 changes "
        "results (by 2⁻¹¹ of a value); recorded in the package, and `xnorc validate` reports the effect.",
    )(function)
    function = click.option(
        "--calibration",
        type=FILE,
        metavar="DATA.npz",
        help="With --float-layers int8: samples of the model's inputs, by name, for the ranges of activations.",
    )(function)
    function = click.option(
        "--float-layers",
        type=click.Choice(["float32", "int8"]),
        default="float32",
        show_default=True,
        metavar="float32|int8",
        help="Compute the layers that are not packed in float, or on 8-bit integers. int8 changes results; recorded in the "
        "package, and `xnorc validate` reports the effect.",
    )(function)
    function = click.option(
        "--sign-zero",
        type=click.Choice(["+1", "1", "-1"]),
        metavar="+1|-1",
        help="Let sign(0) be +1 or -1 instead of what the model says (default). Changes results; recorded in the package.",
    )(function)
    return click.option(
        "--shape",
        "shapes",
        type=_Shape(),
        multiple=True,
        metavar="NAME=1,3,224,224",
        help="Shape of the input NAME, needed where the model leaves it open. May be repeated.",
    )(function)


def read_calibration(
    path: Path | None, model: Path, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray] | None:
    """What ``--calibration`` names, for ``model``. Raises ``InputError``."""
    if path is None:
        return None
    from ..model import read_model

    return read_feeds(path, [info.name for info in read_model(model, shapes).graph.input])


def sign_zero_value(text: str | None) -> int | None:
    """The value of ``--sign-zero``."""
    return None if text is None else int(text)


def device_options(function: F) -> F:
    """``--device`` and ``--threads``."""
    function = click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        default=1,
        show_default="1",
        metavar="N",
        help="Threads on the device.",
    )(function)
    return click.option(
        "--device",
        default="host",
        show_default=True,
        metavar="DEVICE",
        help="host (this process), qemu (emulated), or ssh://user@board (needs nothing installed).",
    )(function)


def console(width: int = _WIDTH) -> Console:
    """Where tables go: stdout, ``width`` columns wide when it is not a terminal."""
    from rich.console import Console as Base

    class Console(Base):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1, which here means that a check failed

    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return Console(width=None if known else width, highlight=False, soft_wrap=False)


def table(*columns: str, title: str | None = None, right: Sequence[str] = ()) -> Table:
    """An empty table of the house style; the columns in ``right`` hold numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


_PATIENCE = 3.0
_SLOW = {"linking": "linking (zig builds a C library once: up to a minute)"}
"""Stages that can take long for a reason, and what to say when they do."""


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is being done; nothing when stderr is not a terminal. An interruption that was
    missed ends the work at the next stage."""
    if not sys.stderr.isatty():
        yield lambda stage: _stop_if_interrupted()
        return
    from rich.console import Console
    from rich.markup import escape

    timers: list[threading.Timer] = []

    with Console(stderr=True).status(escape(title)) as status:

        def show(stage: str) -> None:
            status.update(f"{escape(title)}: {escape(stage)}")

        def say(stage: str) -> None:
            _stop_if_interrupted()
            while timers:
                timers.pop().cancel()
            show(stage)
            if stage in _SLOW:
                timer = threading.Timer(_PATIENCE, show, [_SLOW[stage]])
                timer.daemon = True
                timer.start()
                timers.append(timer)

        try:
            yield say
        finally:
            while timers:
                timers.pop().cancel()


def many(count: int, what: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def write_json(path: Path | None, facts: Any) -> None:
    """Write what ``--json`` asks for, if it does."""
    if path is not None:
        from ..files import atomic_write

        atomic_write(path, (json.dumps(facts, indent=1, sort_keys=True, default=_plain) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a JSON file")


def check_writable(*paths: Path | None) -> None:
    """Fail before long work, not after it, when an output cannot be written where it is wanted."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise XnorcError(f"cannot write '{path}': it is a folder")
        if not path.resolve().parent.is_dir():
            raise XnorcError(f"cannot write '{path}': there is no folder '{path.parent}'")


def read_feeds(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a .npz by name; a .npy serves a model of one input. Raises ``InputError``."""
    from ..files import read_arrays

    data = read_arrays(path)
    if isinstance(data, dict):
        return data
    if len(names) != 1:
        raise InputError(
            f"'{path}' holds one array, the model has {len(names)} inputs: give a .npz with {', '.join(names)}"
        )
    return {names[0]: data}
