"""The command `factory generate`, as a script for a checkout and for `ray job submit`."""

from factory.commands.generate import main

if __name__ == "__main__":
    main()
