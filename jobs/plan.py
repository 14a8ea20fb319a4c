"""The command `factory plan`, as a script for a checkout and for `ray job submit`."""

from factory.commands.plan import main

if __name__ == "__main__":
    main()
