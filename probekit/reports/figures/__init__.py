"""Figures of a panel, one module each: a function from records to a matplotlib figure."""
