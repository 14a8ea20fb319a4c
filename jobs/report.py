"""The command `factory report`, as a script for a checkout and for `ray job submit`."""

from factory.commands.report import main

if __name__ == "__main__":
    main()
