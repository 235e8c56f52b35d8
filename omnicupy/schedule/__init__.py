"""Who works on which tiles, in which order, and the arrays that say so. No CuPy."""
