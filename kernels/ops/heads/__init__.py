"""What is done to every head of every row by itself."""
