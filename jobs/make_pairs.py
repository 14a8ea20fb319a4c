"""The command `factory make_pairs`, as a script for a checkout and for `ray job submit`."""

from factory.commands.make_pairs import main

if __name__ == "__main__":
    main()
