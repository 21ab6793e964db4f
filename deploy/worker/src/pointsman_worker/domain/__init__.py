"""What a question, an answer and a backend are. Imports the standard library alone, and does no I/O."""
