"""The command line: what it reads, what it refuses and how it says so, and what it writes down."""
