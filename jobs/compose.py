"""The command `factory compose`, as a script for a checkout and for `ray job submit`."""

from factory.commands.compose import main

if __name__ == "__main__":
    main()
