"""The command `factory verify`, as a script for a checkout and for `ray job submit`."""

from factory.commands.verify import main

if __name__ == "__main__":
    main()
