"""Face recognizers: networks, margin heads, and others' weights."""
