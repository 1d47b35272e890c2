"""`python -m pgtg` is `pgtg`."""

from pgtg.cli import app

if __name__ == "__main__":
    app(prog_name="pgtg")
