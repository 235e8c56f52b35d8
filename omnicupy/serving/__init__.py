"""Keys and values of caches that grow, and which of them the newest tokens see. No CuPy."""
