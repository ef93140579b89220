"""Files of structures in other people's formats, each with its units and signs declared in one table."""
