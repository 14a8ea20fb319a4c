"""The command `factory make_benchmarks`, as a script for a checkout and for `ray job submit`."""

from factory.commands.make_benchmarks import main

if __name__ == "__main__":
    main()
