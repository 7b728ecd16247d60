"""What can be done at a shell, a module for each command."""
