"""What counting knows of the next token, as a part of a network."""
