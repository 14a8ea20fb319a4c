"""The command `factory compare`, as a script for a checkout and for `ray job submit`."""

from factory.commands.compare import main

if __name__ == "__main__":
    main()
