"""What a call is given: arrays, sizes, and every argument error."""
