"""The command `factory measure`, as a script for a checkout and for `ray job submit`."""

from factory.commands.measure import main

if __name__ == "__main__":
    main()
