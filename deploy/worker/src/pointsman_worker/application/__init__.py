"""How questions are run. Imports `domain` alone."""
