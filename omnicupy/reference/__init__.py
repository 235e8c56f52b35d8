"""What attention means here, in float64, and the error that is allowed. Nothing fast imports it."""
