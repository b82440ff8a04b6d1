"""What is on a tape, to be looked at: as records with names, as text, as a graph."""
