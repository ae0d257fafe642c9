"""``import xnorc`` and the command line's help are quick: nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "torch", "tvm", "rich", "jinja2", "onnxscript")


def modules_after(code: str) -> list[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import xnorc",
        "import xnorc; xnorc.__version__; xnorc.targets.every(); xnorc.errors.ModelError",
        "import xnorc; xnorc.load, xnorc.Package",
        "import xnorc.cli",
        "import xnorc.report",
    ],
)
def test_nothing_heavy(code: str) -> None:
    assert not set(HEAVY) & set(modules_after(code))


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "from click.testing import CliRunner\nfrom xnorc.cli import app\n"
        "assert CliRunner().invoke(app, ['--version']).output.startswith('xnorc ')\n"
        "assert CliRunner().invoke(app, ['run', '--help']).exit_code == 0\n"
    )
    assert not set(HEAVY) & set(modules_after(code))


def test_reading_and_packing_models_needs_neither_torch_nor_tvm() -> None:
    assert not {"torch", "tvm"} & set(modules_after("import xnorc.api, xnorc.model"))


def test_every_public_name_is_there() -> None:
    import xnorc

    for name in xnorc.__all__:
        assert getattr(xnorc, name) is not None
    assert set(xnorc.__all__) <= set(dir(xnorc))
    assert callable(xnorc.export) and callable(xnorc.compile)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = xnorc.nothing
