"""What the command line's commands do, once its arguments are known to be right."""
