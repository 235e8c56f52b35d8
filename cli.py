"""The command line from a checkout: `python cli.py verify`. Installed, the same commands are `omnicupy
...`.
"""

from omnicupy.tools.cli.main import main

if __name__ == "__main__":
    main()
