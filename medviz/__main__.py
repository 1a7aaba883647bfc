"""`python -m medviz`."""

from medviz.cli import main

main(prog_name="medviz")
