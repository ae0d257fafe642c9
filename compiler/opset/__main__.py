"""``python -m xnorc.opset > docs/operators.md``: the operator reference, written from the declarations."""

import inspect

from . import DOMAIN, REGISTRY, VERSION


def reference() -> str:
    """The page, in Markdown."""
    lines = [
        f"# Operators of `{DOMAIN}`, version {VERSION}",
        "",
        "Written by `python -m xnorc.opset` from the declarations in `compiler/opset/`; do not edit. Every operator has an",
        "ONNX function body over standard operators, so a packed model runs in any ONNX runtime.",
        "",
        "Packed bits are `uint8`, least significant bit first; a bit of 1 is +1, of 0 is −1; bits past the last channel are 0.",
    ]
    for name in sorted(REGISTRY):
        op = REGISTRY[name]
        attributes = ", ".join(f"`{key}`: {kind.__name__}" for key, kind in op.attributes.items())
        lines += [
            "",
            f"## {name}",
            "",
            inspect.cleandoc(op.__doc__ or "").replace("``", "`"),
            "",
            f"Inputs: {', '.join(f'`{i}`' for i in op.inputs)}. Output: `{op.output}`. Attributes: {attributes or 'none'}.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
