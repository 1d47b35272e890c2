"""`python -m pgtg` is `pgtg`."""

from pgtg.cli.main import app

if __name__ == "__main__":
    app(prog_name="pgtg")
