"""The command `factory prepare`, as a script for a checkout and for `ray job submit`."""

from factory.commands.prepare import main

if __name__ == "__main__":
    main()
