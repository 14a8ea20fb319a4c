"""The command `factory make_bank`, as a script for a checkout and for `ray job submit`."""

from factory.commands.make_bank import main

if __name__ == "__main__":
    main()
