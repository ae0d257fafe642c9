"""``python -m xnorc`` is the command line."""

from .cli import main

main()
