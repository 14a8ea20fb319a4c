"""Face recognizers: networks, margin heads, and other projects' weights."""
