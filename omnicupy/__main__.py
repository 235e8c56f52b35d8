"""The command line of an installed package: `python -m omnicupy verify`."""

from omnicupy.tools.cli.main import main

if __name__ == "__main__":
    main(prog_name="python -m omnicupy")
