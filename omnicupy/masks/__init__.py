"""Which keys a row may see: masks, their algebra, and their cut into tiles. NumPy alone."""
