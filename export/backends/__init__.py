"""From a captured graph to each compiled form."""
