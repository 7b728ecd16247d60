"""What callers send, checked; pure."""
