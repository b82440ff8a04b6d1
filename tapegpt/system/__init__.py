"""What tapegpt needs of the system: files that survive a crash, owners, processors, a compiler."""
