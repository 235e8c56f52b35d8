"""Which kernel variant a call gets, and what the call should take."""
