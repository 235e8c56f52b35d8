"""What stands behind the commands. Nothing outside of it imports it."""
