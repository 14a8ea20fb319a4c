"""The command `factory export`, as a script for a checkout and for `ray job submit`."""

from factory.commands.export import main

if __name__ == "__main__":
    main()
