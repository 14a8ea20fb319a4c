"""The commands of the factory; each is one module with its arguments and its main."""
