"""The command `factory evaluate`, as a script for a checkout and for `ray job submit`."""

from factory.commands.evaluate import main

if __name__ == "__main__":
    main()
